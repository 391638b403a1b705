{{/* config/injector.yaml: what the chart decides, over what the values say. */}}
{{- define "valetkey.injector.settings" -}}
{{- $injector := .Values.injector -}}
{{- $name := include "valetkey.name" (list . "injector") -}}
{{- $settings := deepCopy $injector.settings -}}
{{- $webhook := dict "bind" (printf "%s:9443" .Values.bindAddress) "admin" (printf "%s:9444" .Values.bindAddress) -}}
{{- if $injector.tls.existingSecret -}}
{{- $_ := set $webhook "tls" (dict "cert_file" "/etc/valetkey/tls/tls.crt" "key_file" "/etc/valetkey/tls/tls.key") -}}
{{- else -}}
{{- $_ := set $webhook "own" (dict "service" $name "secret" (printf "%s-tls" $name) "mutating" $name "validating" $name) -}}
{{- end -}}
{{- $_ := set $settings "webhook" $webhook -}}
{{- if not (dig "sidecar" "image" "" $settings) -}}
{{- $_ := set $settings "sidecar" (merge (dict "image" (include "valetkey.image" .)) ($settings.sidecar | default dict)) -}}
{{- end -}}
{{- if and $injector.operator (not (dig "sidecar" "operator" "" $settings)) -}}
{{- $_ := set $settings "sidecar" (merge (dict "operator" (dict "config_map" "valetkey-operator")) $settings.sidecar) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{/* The ConfigMap with the operator's file, and its key, as JSON. Empty: there is none. */}}
{{- define "valetkey.injector.operator" -}}
{{- $said := dig "sidecar" "operator" dict .Values.injector.settings | default dict -}}
{{- if or .Values.injector.operator $said -}}
{{- toJson (dict "name" (dig "config_map" "valetkey-operator" $said) "key" (dig "key" "operator.yaml" $said)) -}}
{{- end -}}
{{- end -}}
