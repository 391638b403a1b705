{{- define "valetkey.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* (list $ "broker") → the name of that program's objects */}}
{{- define "valetkey.name" -}}
{{- printf "%s-%s" (include "valetkey.fullname" (index . 0)) (index . 1) -}}
{{- end -}}

{{/* (list $ "broker") → what selects a program's pods. A Deployment's never changes. */}}
{{- define "valetkey.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* (list $ "broker" MORE) → labels, MORE among them. Nobody's take the place of those that select. */}}
{{- define "valetkey.labels" -}}
{{- $root := index . 0 -}}
{{- $own := include "valetkey.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") -}}
{{- $more := gt (len .) 2 | ternary (last .) dict -}}
{{- merge $own $more $root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* (list $ "broker" MORE) → name, namespace and labels of an object */}}
{{- define "valetkey.meta" -}}
name: {{ include "valetkey.name" . }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "valetkey.labels" . | nindent 2 }}
{{- end -}}
