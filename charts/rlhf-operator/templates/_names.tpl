{{- define "rlhf-operator.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "rlhf-operator.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "rlhf-operator.fullname" .) }}
{{- end }}

{{- define "rlhf-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "rlhf-operator.labels" -}}
{{ include "rlhf-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* Where an object is made that may lie in another namespace than the release: root, values. */ -}}
{{- define "rlhf-operator.namespaceOf" -}}
{{ (index . 1).namespace | default (index . 0).Release.Namespace }}
{{- end }}

{{- define "rlhf-operator.image" -}}
"{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
{{- end }}

{{- /* What the Pod Security Standard `restricted` asks of a pod, and then of its containers. */ -}}
{{- define "rlhf-operator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "rlhf-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* The labels of what connects to the operator for `helm test`. Not the operator's own. */ -}}
{{- define "rlhf-operator.testLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* What must be given, and what the cluster must have. */ -}}
{{- define "rlhf-operator.checks" -}}
{{- if not .Values.image.repository }}
{{- fail "image.repository is not set: no image of the operator is published; build one, push it and name it, for example --set image.repository=registry.example.com/rlhf/operator" }}
{{- end }}
{{- if not .Values.trainerImage }}
{{- fail "trainerImage is not set: build the trainer image, push it and name it with its tag, for example --set trainerImage=registry.example.com/rlhf/trainer:0.1.0" }}
{{- end }}
{{- $on := list }}
{{- if .Values.metrics.serviceMonitor.enabled }}{{ $on = append $on "metrics.serviceMonitor.enabled" }}{{ end }}
{{- if .Values.metrics.podMonitor.enabled }}{{ $on = append $on "metrics.podMonitor.enabled" }}{{ end }}
{{- if .Values.prometheusRule.enabled }}{{ $on = append $on "prometheusRule.enabled" }}{{ end }}
{{- if and $on (not (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) }}
{{- fail (printf "%s: the cluster does not serve monitoring.coreos.com/v1; install the CRDs of prometheus-operator first, or set it to false (helm template knows no cluster: add --api-versions monitoring.coreos.com/v1)" (join ", " $on)) }}
{{- end }}
{{- end }}

{{- /* What the operator does with a namespace's objects. No Secret is read, no pod is made. */ -}}
{{- define "rlhf-operator.rules" -}}
- apiGroups: [rlhf.dev]
  resources: [rlhfjobs]
  # delete: runPolicy.ttlSecondsAfterFinished
  verbs: [get, list, watch, delete]
- apiGroups: [rlhf.dev]
  resources: [rlhfjobs/status]
  verbs: [patch]
- apiGroups: [rlhf.dev]
  # For blockOwnerDeletion where OwnerReferencesPermissionEnforcement is on.
  resources: [rlhfjobs/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, create]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [""]
  # list: why the Job controller could not make a pod
  resources: [events]
  verbs: [list, create]
{{- end }}
