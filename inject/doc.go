// Package inject puts the proxy into pods.
//
//	config := inject.Config{Image: "…/tulle-proxy:1.0", CNI: true, Native: true, …}
//	result, err := config.Patch(podJSON, inject.Origin{Namespace: "shop"}) // the pure patch
//	http.Handle(cluster.WebhookPath, inject.NewWebhook(inject.WebhookConfig{Inject: config, …}))
//	out, err := config.Manifest(yaml) // the same patch on files
//
// The model: a pod comes in as JSON, a JSON patch (RFC 6902) and, for the user,
// warnings go out. What the pod's annotations ask for is one table. Nothing is
// guessed: an annotation of ours that is unknown or bad refuses the pod, with
// the reason.
//
// Probes of the kubelet are sent to the proxy's admin port, which asks the
// application: they work whatever the policy, reach what was declared and
// nothing else, and a TCP probe tells of the application, not of the proxy.
//
// Not here: Kubernetes' own types and client. What is read of a pod is little,
// and all else passes untouched.
package inject
