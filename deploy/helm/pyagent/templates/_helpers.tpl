{{/* Name of the chart's objects, without the release's. */}}
{{- define "pyagent.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of the chart's objects. */}}
{{- define "pyagent.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "pyagent.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "pyagent.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* What pods are chosen by: it never changes. */}}
{{- define "pyagent.selectorLabels" -}}
app.kubernetes.io/name: {{ include "pyagent.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pyagent.labels" -}}
{{ include "pyagent.labelsWith" (list . dict) }}
{{- end }}

{{/* The same and others, given as a list of the root and those: what pods are chosen by stays. */}}
{{- define "pyagent.labelsWith" -}}
{{- $root := first . }}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" $root.Chart.AppVersion
  "app.kubernetes.io/component" "profiler"
  "app.kubernetes.io/part-of" "pyagent"
  "app.kubernetes.io/managed-by" $root.Release.Service
}}
{{- $selecting := include "pyagent.selectorLabels" $root | fromYaml }}
{{- toYaml (merge $own $selecting (last .) $root.Values.commonLabels) }}
{{- end }}

{{- define "pyagent.image" -}}
{{- $registry := default .Values.image.registry .Values.global.imageRegistry }}
{{- $repository := .Values.image.repository }}
{{- if $registry }}
{{- $repository = printf "%s/%s" $registry $repository }}
{{- end }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* Whether profiles are served on the pod's address; else on its loopback address alone. */}}
{{- define "pyagent.isServed" -}}
{{- if or .Values.tls.existingSecret .Values.insecure }}true{{ end }}
{{- end }}

{{/* What would not do what it says is refused. */}}
{{- define "pyagent.check" -}}
{{- if and .Values.tls.clientCA (not .Values.tls.existingSecret) }}
{{- fail "tls.clientCA needs tls.existingSecret, whose ca.crt it is" }}
{{- end }}
{{- if and .Values.auth.existingSecret (not .Values.tls.existingSecret) }}
{{- fail "auth.existingSecret needs tls.existingSecret: tokens are not sent in the clear" }}
{{- end }}
{{- if and .Values.tls.existingSecret (not .Values.tls.clientCA) (not .Values.auth.existingSecret) (not .Values.auth.kubernetes) (not .Values.insecure) }}
{{- fail "tls.existingSecret alone lets everybody in: set tls.clientCA, auth.existingSecret, auth.kubernetes or insecure" }}
{{- end }}
{{- if eq (int .Values.service.port) (int .Values.health.port) }}
{{- fail "service.port and health.port are one: choose two" }}
{{- end }}
{{- if and (lt (min (int .Values.service.port) (int .Values.health.port)) 1024) (not (has "NET_BIND_SERVICE" .Values.capabilities)) }}
{{- fail "a port below 1024 needs NET_BIND_SERVICE in capabilities" }}
{{- end }}
{{- if and .Values.auth.kubernetes (not .Values.kubernetes.enabled) }}
{{- fail "auth.kubernetes needs kubernetes.enabled: the API server is asked" }}
{{- end }}
{{- end }}

{{- define "pyagent.imagePullSecrets" -}}
{{- range concat .Values.global.imagePullSecrets .Values.imagePullSecrets }}
- name: {{ if kindIs "string" . }}{{ . }}{{ else }}{{ .name }}{{ end }}
{{- end }}
{{- end }}

{{/* The rights of a container, and no others. */}}
{{- define "pyagent.securityContext" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsUser: 0
capabilities:
  drop: [ALL]
  add:
    {{- toYaml .Values.capabilities | nindent 4 }}
{{- with .Values.seccompProfile }}
seccompProfile:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.appArmorProfile }}
appArmorProfile:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
