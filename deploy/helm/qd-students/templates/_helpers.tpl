{{- define "qd.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "qd.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "qd.labels" -}}
{{ include "qd.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "qd.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- if eq $tag "latest" }}{{ fail "image.tag is latest, expected a release" }}{{ end -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ $tag }}{{ end }}
{{- end }}

{{- /* What the pods of service and worker have in common: everything of the spec but containers and grace. */ -}}
{{- define "qd.pod" -}}
serviceAccountName: {{ include "qd.name" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "qd.selector" . | nindent 8 }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "qd.selector" . | nindent 8 }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "qd.container" -}}
image: {{ include "qd.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities:
    drop: [ALL]
envFrom:
  - configMapRef:
      name: {{ include "qd.name" .root }}
resources: {{- toYaml .values.resources | nindent 2 }}
{{- end }}

{{- define "qd.redisUrl" -}}
- name: QD_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.redis.existingSecret }}
      key: {{ .Values.redis.secretKey }}
{{- end }}

{{- define "qd.scratchMounts" -}}
- name: state
  mountPath: /state
- name: tmp
  mountPath: /tmp
{{- end }}

{{- define "qd.scratchVolumes" -}}
- name: state
  emptyDir:
    sizeLimit: 64Mi
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- end }}

{{- /* Refuses values that a schema cannot compare, and settings that have a place of their own. */ -}}
{{- define "qd.refuse" -}}
{{- $places := dict
  "QD_REDIS_URL" "redis.existingSecret"
  "QD_QUAFU_TOKEN" "quafu.existingSecret"
  "QD_QUAFU_TOKEN_FILE" "quafu.existingSecret"
  "QD_BUNDLES_DIR" "service.bundles"
  "QD_ALLOW_ANONYMOUS" "allowAnonymous"
  "QD_THREADS" "service.threads"
  "QD_SHUTDOWN_GRACE_SECONDS" "service.shutdownGraceSeconds" }}
{{- range $name, $_ := .Values.config }}
{{- with get $places $name }}{{ fail (printf "config.%s is not set there, expected %s" $name .) }}{{ end }}
{{- if has $name (list "QD_HOST" "QD_PORT" "QD_STATE_DIR" "QD_EMBEDDED" "QD_WORKER_METRICS_HOST" "QD_WORKER_METRICS_PORT") }}
{{- fail (printf "config.%s is the chart's own and cannot be set" $name) }}
{{- end }}
{{- end }}
{{- range $part, $values := dict "service" .Values.service "worker" .Values.worker }}
{{- with $values.autoscaling }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
{{- fail (printf "%s.autoscaling: minReplicas is %d, expected at most maxReplicas (%d)" $part (int .minReplicas) (int .maxReplicas)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
