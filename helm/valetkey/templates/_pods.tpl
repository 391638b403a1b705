{{/* By digest where there is one: a tag beside it would say nothing. */}}
{{- define "valetkey.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag }}
{{- end -}}
{{- end -}}

{{/* (list $ "broker" SETTINGS) → labels and annotations of a pod */}}
{{- define "valetkey.podMeta" -}}
{{- $root := index . 0 -}}
labels:
  # Nothing of the chart's version: a new chart of the same programs starts none of them anew.
  {{- omit (include "valetkey.labels" (list $root (index . 1) $root.Values.pods.labels) | fromYaml) "helm.sh/chart" "app.kubernetes.io/managed-by" | toYaml | nindent 2 }}
annotations:
  # Programs read their settings at the start: other settings, other pods.
  checksum/settings: {{ index . 2 | sha256sum }}
  {{- with $root.Values.pods.annotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* What the Pod Security Standard "restricted" asks of a pod, and where it runs. */}}
{{- define "valetkey.podSpec" -}}
automountServiceAccountToken: false
# No program looks for others by the variables of Services, which are named VALETKEY_… as settings are.
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.pods.uid }}
  runAsGroup: {{ .Values.pods.gid }}
  fsGroup: {{ .Values.pods.gid }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
# Calls in flight get ten seconds.
terminationGracePeriodSeconds: 30
{{- with .Values.pods.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.pods.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pods.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "valetkey.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* (list "api" "https") → how the kubelet asks, at which port */}}
{{- define "valetkey.probes" -}}
{{- $port := first . -}}
{{- $scheme := last . | upper -}}
startupProbe:
  httpGet: {path: /readyz, port: {{ $port }}, scheme: {{ $scheme }}}
  periodSeconds: 2
  timeoutSeconds: 3
  # Ten minutes: a database of before may have to be filled in.
  failureThreshold: 300
livenessProbe:
  httpGet: {path: /healthz, port: {{ $port }}, scheme: {{ $scheme }}}
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ $port }}, scheme: {{ $scheme }}}
  periodSeconds: 5
  timeoutSeconds: 3
{{- end -}}

{{/* As the API server mounts it, but only where it is asked for. */}}
{{- define "valetkey.apiToken" -}}
projected:
  defaultMode: 0440
  sources:
    - serviceAccountToken: {path: token, expirationSeconds: 3607}
    - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
    - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end -}}
