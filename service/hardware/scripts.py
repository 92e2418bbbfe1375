"""The steps that must happen at once or not at all, as scripts that Redis runs.

Every script takes one key, the target's prefix, and one argument, a JSON object, and may be repeated: its first answer
may have been lost. Keys below the prefix:

    job:<id>            hash: fields of `Job`; `at:<status>` when it was entered, `result:<i>` and `error:<i>`
    jobs:<status>       sorted set of job ids by creation; also jobs:<status>:<task>
    ended:<status>      sorted set of the ids of jobs that ended so and are still kept, by their end
    run:<id>            hash: fields of `Run`; `at:<status>` when it was entered
    run:<id>:jobs       set of the jobs that wait for it
    inflight            hash: fingerprint to the run that is not final
    pending             list of runs that wait for a batch
    batch:<token>       hash: fields of `Batch`
    batches             sorted set of open batches by creation
    events              channel: the id of a job that has changed
    spent:<key>:<day>   shots that an API key has spent on a day (UTC)

What a script did is told again to whoever repeats the very same call, which has the same `now`: what is counted by its
answer is counted once.
"""

from __future__ import annotations

_PRELUDE = """
local p, a = KEYS[1], cjson.decode(ARGV[1])
local rank = {queued = 0, submitted = 1, running = 2, done = 3, failed = 3, cancelled = 3}

local function move(id, status)
  local job = p .. 'job:' .. id
  local old = redis.call('HGET', job, 'status')
  if old and redis.call('HGET', job, 'at:' .. status) == a.now then return 1 end
  if not old or rank[status] <= rank[old] then return 0 end
  redis.call('HSET', job, 'status', status, 'at:' .. status, a.now)
  redis.call('HDEL', job, 'hold')
  local created, task = redis.call('HGET', job, 'created_at'), redis.call('HGET', job, 'task')
  for _, suffix in ipairs({'', ':' .. task}) do
    redis.call('ZREM', p .. 'jobs:' .. old .. suffix, id)
    redis.call('ZADD', p .. 'jobs:' .. status .. suffix, created, id)
    -- Jobs so old have ended and expired.
    redis.call('ZREMRANGEBYSCORE', p .. 'jobs:' .. status .. suffix, '-inf', tonumber(a.now) - a.run_ttl)
  end
  if rank[status] == 3 then
    redis.call('EXPIRE', job, a.ttl)
    redis.call('ZADD', p .. 'ended:' .. status, a.now, id)
    redis.call('ZREMRANGEBYSCORE', p .. 'ended:' .. status, '-inf', tonumber(a.now) - a.ttl)
  end
  redis.call('PUBLISH', p .. 'events', id)
  return 1
end

local function finish(id, status)
  local run = p .. 'run:' .. id
  local sha = redis.call('HGET', run, 'sha')
  redis.call('HSET', run, 'status', status, 'at:' .. status, a.now)
  if redis.call('HGET', p .. 'inflight', sha) == id then redis.call('HDEL', p .. 'inflight', sha) end
  redis.call('EXPIRE', run, a.run_ttl)
  redis.call('EXPIRE', run .. ':jobs', a.run_ttl)
end
"""

# A new job, and a run for each of its circuits that is not already under way; only these are paid for.
# {now, id, job, runs, traceparent, max_pending, budget: {key, day, limit, ttl} or null}; the number of these runs, -1
# if the queue has no room for them, or -2 if the key may not spend their shots.
CREATE = (
    _PRELUDE
    + """
local job = p .. 'job:' .. a.id
local known = redis.call('HGET', job, 'n_queued')
if known then return tonumber(known) end
local fresh, shots = 0, 0
for _, run in ipairs(a.runs) do
  if redis.call('HEXISTS', p .. 'inflight', run.sha) == 0 then
    fresh = fresh + 1
    shots = shots + run.shots
  end
end
if redis.call('LLEN', p .. 'pending') + fresh > a.max_pending then return -1 end
if a.budget and a.budget ~= cjson.null then
  local spent = p .. 'spent:' .. a.budget.key .. ':' .. a.budget.day
  if shots > 0 and tonumber(redis.call('GET', spent) or '0') + shots > a.budget.limit then return -2 end
  redis.call('INCRBY', spent, shots)
  redis.call('EXPIRE', spent, a.budget.ttl)
end
local runs = {}
for _, run in ipairs(a.runs) do
  local id = redis.call('HGET', p .. 'inflight', run.sha)
  if not id then
    id = run.id
    redis.call('HSET', p .. 'run:' .. id, 'id', id, 'sha', run.sha, 'status', 'queued', 'circuit', run.circuit,
      'shots', run.shots, 'layout', run.layout, 'created_at', a.now)
    redis.call('HSET', p .. 'inflight', run.sha, id)
    redis.call('RPUSH', p .. 'pending', id)
  end
  if a.traceparent ~= '' then
    local known = redis.call('HGET', p .. 'run:' .. id, 'traceparents')
    local all = known and (known .. ' ' .. a.traceparent) or a.traceparent
    -- A circuit that everybody asks for needs no more than some of those who did.
    if #all <= 1024 then redis.call('HSET', p .. 'run:' .. id, 'traceparents', all) end
  end
  redis.call('HDEL', p .. 'run:' .. id, 'abandoned')
  redis.call('SADD', p .. 'run:' .. id .. ':jobs', a.id)
  runs[run.sha] = id
end
redis.call('HSET', job, 'status', 'queued', 'at:queued', a.now, 'created_at', a.now, 'runs', cjson.encode(runs),
  'n_queued', fresh)
for field, value in pairs(a.job) do redis.call('HSET', job, field, value) end
redis.call('ZADD', p .. 'jobs:queued', a.now, a.id)
redis.call('ZADD', p .. 'jobs:queued:' .. a.job.task, a.now, a.id)
return fresh
"""
)

# Take waiting runs into a new batch, which is stored before anything is sent. {now, token, most}; how many.
CLAIM = (
    _PRELUDE
    + """
local batch = p .. 'batch:' .. a.token
if redis.call('EXISTS', batch) == 1 then return #cjson.decode(redis.call('HGET', batch, 'runs')) end
local runs = redis.call('LPOP', p .. 'pending', a.most)
if not runs then return 0 end
for _, id in ipairs(runs) do redis.call('HSET', p .. 'run:' .. id, 'batch', a.token) end
redis.call('HSET', batch, 'token', a.token, 'runs', cjson.encode(runs), 'stage', 'intent', 'created_at', a.now,
  'parts', '[]', 'attempts', 0)
redis.call('ZADD', p .. 'batches', a.now, a.token)
return #runs
"""
)

# Break a batch that was refused as a whole into batches of one run, so that one circuit does not fail the others.
# {now, token, tokens}.
SPLIT = (
    _PRELUDE
    + """
local batch = p .. 'batch:' .. a.token
local runs = redis.call('HGET', batch, 'runs')
if not runs then return 0 end
for i, id in ipairs(cjson.decode(runs)) do
  redis.call('HSET', p .. 'run:' .. id, 'batch', a.tokens[i])
  redis.call('HSET', p .. 'batch:' .. a.tokens[i], 'token', a.tokens[i], 'runs', cjson.encode({id}), 'stage', 'intent',
    'created_at', redis.call('HGET', batch, 'created_at'), 'parts', '[]', 'attempts', 0)
  redis.call('ZADD', p .. 'batches', a.now, a.tokens[i])
end
redis.call('DEL', batch)
redis.call('ZREM', p .. 'batches', a.token)
return 1
"""
)

# End a run of a batch; from then on no job comes to wait for it. A run that was cancelled although one had goes back
# to the front of the queue, and is that batch's no more. {now, ttl, run_ttl, run, batch, status, problem}; 1 if it
# ended or 0, then the jobs that wait for it, also when it had ended before.
FINISH = (
    _PRELUDE
    + """
local run = p .. 'run:' .. a.run
local jobs = redis.call('SMEMBERS', run .. ':jobs')
local status = redis.call('HGET', run, 'status')
if not status or redis.call('HGET', run, 'batch') ~= a.batch then return {0} end
if rank[status] == 3 then
  table.insert(jobs, 1, redis.call('HGET', run, 'at:' .. a.status) == a.now and 1 or 0)
  return jobs
end
if a.status == 'cancelled' and #jobs > 0 then
  redis.call('HSET', run, 'status', 'queued')
  redis.call('HDEL', run, 'batch', 'at:submitted', 'at:running')
  redis.call('LPUSH', p .. 'pending', a.run)
  return {0}
end
redis.call('HSET', run, 'problem', a.problem)
finish(a.run, a.status)
table.insert(jobs, 1, 1)
return jobs
"""
)

# Take a batch from its intent to its sending; only one worker does. {now, token, sender, fields}; 1 for that one.
SEND = (
    _PRELUDE
    + """
local batch = p .. 'batch:' .. a.token
if redis.call('HGET', batch, 'sender') == a.sender then return 1 end
if redis.call('HGET', batch, 'stage') ~= 'intent' then return 0 end
for field, value in pairs(a.fields) do redis.call('HSET', batch, field, value) end
redis.call('HSET', batch, 'stage', 'sending', 'sender', a.sender, 'sent_at', a.now)
return 1
"""
)

# Change fields of a batch that is still there. {now, token, fields}.
UPDATE = (
    _PRELUDE
    + """
local batch = p .. 'batch:' .. a.token
if redis.call('EXISTS', batch) == 0 then return 0 end
for field, value in pairs(a.fields) do redis.call('HSET', batch, field, value) end
return 1
"""
)

# Note how far runs are at the provider; they never go back. {now, runs, status, provider_job}; those that went on.
MARK = (
    _PRELUDE
    + """
local moved = {}
for _, id in ipairs(a.runs) do
  local run = p .. 'run:' .. id
  local status = redis.call('HGET', run, 'status')
  if status and rank[a.status] > rank[status] then
    redis.call('HSET', run, 'status', a.status, 'provider_job', a.provider_job, 'at:' .. a.status, a.now)
  end
  if redis.call('HGET', run, 'at:' .. a.status) == a.now then table.insert(moved, id) end
end
return moved
"""
)

# Move a job on; it never goes back, and never on from an end. {now, ttl, run_ttl, id, status}; 1 if it moved.
MOVE = _PRELUDE + "return move(a.id, a.status)"

# Cancel a job. Runs that nobody waits for any more leave the queue, or are marked if they have left it already.
# {now, ttl, run_ttl, id}; how many runs ended by it, or -1 if the job had ended before.
CANCEL = (
    _PRELUDE
    + """
if move(a.id, 'cancelled') == 0 then return -1 end
local ended = 0
for _, id in pairs(cjson.decode(redis.call('HGET', p .. 'job:' .. a.id, 'runs'))) do
  local run = p .. 'run:' .. id
  redis.call('SREM', run .. ':jobs', a.id)
  local status = redis.call('HGET', run, 'status')
  if status and rank[status] < 3 and redis.call('SCARD', run .. ':jobs') == 0 then
    if redis.call('LREM', p .. 'pending', 1, id) == 1 then
      finish(id, 'cancelled')
    else
      redis.call('HSET', run, 'abandoned', 1)
    end
  end
  if redis.call('HGET', run, 'at:cancelled') == a.now then ended = ended + 1 end
end
return ended
"""
)

# What there is to see of a target at one moment. {now, ttl}; JSON whose times are text and false where there is none.
SURVEY = (
    _PRELUDE
    + """
local found = {jobs = {}, oldest_circuit_at = false, oldest_job_at = false}
found.n_pending = redis.call('LLEN', p .. 'pending')
local first = redis.call('LINDEX', p .. 'pending', 0)
if first then found.oldest_circuit_at = redis.call('HGET', p .. 'run:' .. first, 'created_at') end
for status, r in pairs(rank) do
  if r == 3 then
    found.jobs[status] = redis.call('ZCOUNT', p .. 'ended:' .. status, tonumber(a.now) - a.ttl, '+inf')
  else
    found.jobs[status] = redis.call('ZCARD', p .. 'jobs:' .. status)
    local at = redis.call('ZRANGE', p .. 'jobs:' .. status, 0, 0, 'WITHSCORES')[2]
    if at and (not found.oldest_job_at or tonumber(at) < tonumber(found.oldest_job_at)) then
      found.oldest_job_at = at
    end
  end
end
found.has_worker = redis.call('EXISTS', p .. 'heartbeat') == 1
found.provider = redis.call('GET', p .. 'provider')
found.calibration_at = redis.call('GET', p .. 'calibration:at')
found.readout = redis.call('GET', p .. 'readout')
return cjson.encode(found)
"""
)
