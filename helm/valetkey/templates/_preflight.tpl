{{/*
Values that contradict each other, or without which nothing would start: all of them at once, before
anything is installed. What the programs' own loaders say of settings beyond that, they say at their
start; the old pods then stay.
*/}}
{{- define "valetkey.preflight" -}}
{{- $wrong := list -}}
{{- $broker := .Values.broker -}}
{{- $collector := .Values.collector -}}
{{- $sqlite := eq $broker.database.type "sqlite" -}}

{{- if not .Values.image.repository -}}
{{- $wrong = append $wrong "image.repository is required" -}}
{{- end -}}
{{- if not (or .Values.image.digest .Values.image.tag) -}}
{{- $wrong = append $wrong "image.digest is required (or image.tag, which pins nothing)" -}}
{{- end -}}

{{- $issuer := urlParse ($broker.settings.issuer | default "") -}}
{{- if or (ne $issuer.scheme "https") (not $issuer.host) $issuer.path -}}
{{- $wrong = append $wrong "broker.settings.issuer is required: an https URL without a path, under which clients reach the broker" -}}
{{- end -}}
{{- $uses := list -}}
{{- range $broker.settings.issuers -}}
{{- $uses = append $uses .use -}}
{{- if and .review (not $broker.tokenReview) -}}
{{- $wrong = append $wrong (printf "broker.tokenReview is false, but issuer %s has review" .issuer) -}}
{{- end -}}
{{- end -}}
{{- if not (has "workload" $uses) -}}
{{- $wrong = append $wrong "broker.settings.issuers has none with use: workload: nobody could authenticate" -}}
{{- end -}}
{{- if not $broker.settings.targets -}}
{{- $wrong = append $wrong "broker.settings.targets is empty: no token could ever be minted" -}}
{{- end -}}
{{- if not $broker.masterKey.existingSecret -}}
{{- $wrong = append $wrong "broker.masterKey.existingSecret is required" -}}
{{- end -}}
{{- if and $broker.grants $broker.grantsConfigMap -}}
{{- $wrong = append $wrong "broker.grants and broker.grantsConfigMap: give one of them" -}}
{{- end -}}
{{- range $name, $_ := $broker.policies -}}
{{- if not (hasSuffix ".cedar" $name) -}}
{{- $wrong = append $wrong (printf "broker.policies: %s would not be read, its name must end in .cedar" $name) -}}
{{- end -}}
{{- end -}}
{{- if and $broker.mtls.url $broker.tls.terminated -}}
{{- $wrong = append $wrong "broker.mtls.url needs broker.tls.existingSecret: where TLS is terminated, no client certificate arrives" -}}
{{- end -}}

{{- if $sqlite -}}
{{- if gt (int $broker.replicas) 1 -}}
{{- $wrong = append $wrong "broker.replicas is more than one: brokers have PostgreSQL in common (broker.database.type)" -}}
{{- end -}}
{{- if $broker.autoscaling.enabled -}}
{{- $wrong = append $wrong "broker.autoscaling needs PostgreSQL (broker.database.type)" -}}
{{- end -}}
{{- if $broker.database.postgresql.existingSecret -}}
{{- $wrong = append $wrong "broker.database.postgresql.existingSecret is given, but broker.database.type is sqlite" -}}
{{- end -}}
{{- else -}}
{{- if not $broker.database.postgresql.existingSecret -}}
{{- $wrong = append $wrong "broker.database.postgresql.existingSecret is required for broker.database.type: postgresql" -}}
{{- end -}}
{{- if $broker.database.sqlite.existingClaim -}}
{{- $wrong = append $wrong "broker.database.sqlite.existingClaim is given, but broker.database.type is postgresql" -}}
{{- end -}}
{{- end -}}
{{- if gt (int $broker.autoscaling.minReplicas) (int $broker.autoscaling.maxReplicas) -}}
{{- $wrong = append $wrong "broker.autoscaling.minReplicas is more than maxReplicas" -}}
{{- end -}}

{{- $programs := dict "broker" $broker -}}
{{- if $collector.enabled -}}
{{- $_ := set $programs "collector" $collector -}}
{{- $uses = list -}}
{{- range $collector.settings.issuers -}}
{{- $uses = append $uses .use -}}
{{- end -}}
{{- if not (has "workload" $uses) -}}
{{- $wrong = append $wrong "collector.settings.issuers has none with use: workload: no sidecar could deliver (collector.enabled: false for no collector)" -}}
{{- end -}}
{{- if and (gt (int $collector.replicas) 1) (not $collector.postgresql.existingSecret) -}}
{{- $wrong = append $wrong "collector.replicas is more than one: collectors have PostgreSQL in common (collector.postgresql.existingSecret)" -}}
{{- end -}}
{{- if and $collector.volume.existingClaim $collector.postgresql.existingSecret -}}
{{- $wrong = append $wrong "collector.volume.existingClaim is given, but the record is in PostgreSQL (collector.postgresql.existingSecret)" -}}
{{- end -}}
{{- $nats := $collector.settings.nats | default dict -}}
{{- if and $collector.nats.existingSecret (not $nats) -}}
{{- $wrong = append $wrong "collector.nats.existingSecret is given, but collector.settings.nats is not" -}}
{{- end -}}
{{- range list $nats.credentials_file $nats.nkey_file (ternary (dict) $nats.tls (kindIs "string" $nats.tls) | default dict).ca_file -}}
{{- if and (hasPrefix "/etc/valetkey/nats/" (. | default "")) (not $collector.nats.existingSecret) -}}
{{- $wrong = append $wrong (printf "collector.nats.existingSecret is required: collector.settings.nats names %s" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $program := $programs -}}
{{- if and $program.tls.terminated $program.tls.existingSecret -}}
{{- $wrong = append $wrong (printf "%s.tls: give one of existingSecret and terminated" $name) -}}
{{- else if not (or $program.tls.terminated $program.tls.existingSecret) -}}
{{- $wrong = append $wrong (printf "%s.tls.existingSecret is required" $name) -}}
{{- end -}}
{{- $issuers := $program.settings.issuers -}}
{{- range list "admin" "deployments" -}}
{{- $issuers = concat $issuers (dig . "issuers" list $program.settings) -}}
{{- end -}}
{{- range $issuers -}}
{{- $file := .jwks_file | default "" -}}
{{- if and (hasPrefix "/etc/valetkey/files/" $file) (not (hasKey ($program.files | default dict) (base $file))) -}}
{{- $wrong = append $wrong (printf "%s.files has no %s, which issuer %s names" $name (base $file) .issuer) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- $injector := .Values.injector -}}
{{- if $injector.enabled -}}
{{- if not (dig "sidecar" "broker" "url" "" $injector.settings) -}}
{{- $wrong = append $wrong "injector.settings.sidecar.broker.url is required: sidecars must find the broker" -}}
{{- end -}}
{{- if and $injector.operator (or (dig "sidecar" "targets" "" $injector.settings) (dig "sidecar" "passthrough" "" $injector.settings)) -}}
{{- $wrong = append $wrong "injector.operator has targets and passthrough: injector.settings.sidecar must not" -}}
{{- end -}}
{{- if ne (dig "sidecar" "operator" "namespaces" "valetkey/inject=enabled" $injector.settings) "valetkey/inject=enabled" -}}
{{- $wrong = append $wrong "injector.settings.sidecar.operator.namespaces: the chart's webhooks are for valetkey/inject=enabled" -}}
{{- end -}}
{{- if and $injector.tls.certificate (not $injector.tls.existingSecret) -}}
{{- $wrong = append $wrong "injector.tls.certificate needs injector.tls.existingSecret: certificates that the injector makes are not cert-manager's" -}}
{{- end -}}
{{- if and $injector.tls.existingSecret (not (or $injector.tls.certificate $injector.tls.caBundle)) -}}
{{- $wrong = append $wrong "injector.tls.existingSecret needs certificate or caBundle: the API server would not trust it" -}}
{{- end -}}
{{- if and $injector.tls.certificate $injector.tls.caBundle -}}
{{- $wrong = append $wrong "injector.tls: give one of certificate and caBundle" -}}
{{- end -}}
{{- end -}}

{{- range $kind, $pattern := dict "rules" "files/rules/*.yaml" "dashboards" "files/dashboards/*.json" -}}
{{- if and (index $.Values.metrics $kind).enabled (not ($.Files.Glob $pattern)) -}}
{{- $wrong = append $wrong (printf "metrics.%s.enabled: this chart was packed without any" $kind) -}}
{{- end -}}
{{- end -}}

{{- if $wrong -}}
{{- fail (printf "\n\nThese values can't be installed:\n  - %s\n" (join "\n  - " $wrong)) -}}
{{- end -}}
{{- end -}}
