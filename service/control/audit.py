"""What operators have changed and who did, written in one step with the change itself."""

from __future__ import annotations

import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError
from redis.asyncio import Redis

from service.control import keyspace
from service.control.switches import Switch
from service.hardware.records import Record

N_KEPT = 1000
OPEN = "open"
"""Who changed something where no key is needed."""
COMMAND = "qdserve"
"""Who changed something by a command."""

# Both scripts may be repeated, as their first answer may have been lost: an entry's id is new for each change.
_PRELUDE = f"""
local entry = cjson.decode(ARGV[1])
local function is_written()
  for _, written in ipairs(redis.call('LRANGE', KEYS[1], 0, 9)) do
    if string.find(written, entry.id, 1, true) then return true end
  end
  return false
end
local function write()
  redis.call('LPUSH', KEYS[1], cjson.encode(entry))
  redis.call('LTRIM', KEYS[1], 0, {N_KEPT - 1})
end
"""

# Set a task's switch. Keys: audit, switches. Arguments: entry, task, switch.
_SWITCH = (
    _PRELUDE
    + """
if is_written() then return 0 end
local found = redis.call('HGET', KEYS[2], ARGV[2])
local readable, before = pcall(cjson.decode, found or 'none')
if readable and type(before) == 'table' then
  entry.before = {backend = before.backend, shadow_percent = before.shadow_percent}
end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
write()
return 1
"""
)

# Begin a generation of bundles. Keys: audit, generation. Arguments: entry. Returns its number.
_PUBLISH = (
    _PRELUDE
    + """
if is_written() then return tonumber(redis.call('GET', KEYS[2]) or '0') end
write()
return redis.call('INCR', KEYS[2])
"""
)


# Note what was changed elsewhere. Keys: audit. Arguments: entry.
_NOTE = _PRELUDE + "if not is_written() then write() end"


class Entry(Record):
    """One change.

    Attributes:
        by: Id of an API key, `open`, or `qdserve` for a command.
        task: None for bundles and keys, which concern all.
        before: What was in effect; see `after`.
        after: `backend` and `shadow_percent` of a switch, the `bundles` served after a reload, the `key` that was
            made or revoked, without its hash.
        request_id: Of the request that asked for it, as in the log; empty for a command.
    """

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    by: str
    action: Literal["switch", "reload", "create-key", "revoke-key"]
    task: str | None = None
    before: dict[str, Any]
    after: dict[str, Any]
    request_id: str


class Ledger:
    """Makes changes in Redis and lists them; raises RedisError if it does not answer.

    Args:
        redis: Decodes its answers.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._switch = redis.register_script(_SWITCH)
        self._publish = redis.register_script(_PUBLISH)
        self._note = redis.register_script(_NOTE)

    async def switch(self, task: str, switch: Switch, entry: Entry) -> None:
        """Set a task's switch; what Redis holds of it takes the place of the entry's `before`."""
        arguments = [entry.model_dump_json(), task, switch.model_dump_json()]
        await self._switch(keys=[keyspace.AUDIT, keyspace.BACKENDS], args=arguments)

    async def publish(self, entry: Entry) -> int:
        """Let every replica load its bundles anew; returns the number of this generation."""
        return int(await self._publish(keys=[keyspace.AUDIT, keyspace.BUNDLES], args=[entry.model_dump_json()]))

    async def note(self, entry: Entry) -> None:
        """Write down what was changed elsewhere."""
        await self._note(keys=[keyspace.AUDIT], args=[entry.model_dump_json()])

    async def entries(self, limit: int) -> list[Entry]:
        """The last changes, the newest first; one that cannot be read is left out."""
        found = []
        for line in await self._redis.lrange(keyspace.AUDIT, 0, limit - 1):
            with suppress(ValidationError):
                found.append(Entry.model_validate_json(line))
        return found


def switched(switch: Switch) -> dict[str, Any]:
    """A switch as entries hold it."""
    return switch.model_dump(mode="json", include={"backend", "shadow_percent"})
