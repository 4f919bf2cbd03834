// Package cluster holds the names by which the parts of Tulle find each other on
// Kubernetes: what the installer applies, the injector writes, the CNI plugin
// reads and the control plane serves.
package cluster

// What the installer applies.
const (
	Namespace   = "tulle-system"
	TrustDomain = "cluster.local" // unless --trust-domain says otherwise
	// Control names the control plane's Deployment, Service, ServiceAccount,
	// ClusterRole and ClusterRoleBinding.
	Control = "tulle-control"
	// ControlHost is the control plane's Service as proxies dial it, with mesh.ControlPort.
	ControlHost = Control + "." + Namespace + ".svc"
	// Injector names the MutatingWebhookConfiguration, and its one webhook is
	// named WebhookName. The control plane keeps its caBundle.
	Injector    = "tulle-injector"
	WebhookName = "injector.tulle.dev"
	// CNI names the DaemonSet that redirects traffic on each node.
	CNI = "tulle-cni"
	// CASecret is the authority's Secret in Namespace, of type kubernetes.io/tls:
	// tls.crt, tls.key, and, of further trusted roots, ca.crt. The control plane
	// makes it if it is not there.
	CASecret = "tulle-ca"
	// RootsConfigMap is in each meshed namespace, kept by the control plane; pods
	// mount RootsKey of it.
	RootsConfigMap = "tulle-roots"
	RootsKey       = "roots.pem"
)

// Ports of the control plane's pod; gRPC is on mesh.ControlPort and health and
// metrics (GET /live, /ready, /metrics) on mesh.AdminPort, as in a proxy.
const (
	WebhookPort        = 4192 // HTTPS
	WebhookServicePort = 443  // of the Service Control
	WebhookPath        = "/inject"
	DashboardPort      = 4180 // 127.0.0.1 only; reached by port-forward
)

// A projected token proves a pod to the authority.
const (
	TokenAudience = "identity.tulle.dev"
	TokenSeconds  = 3600 // how long one is good for; the kubelet renews it

	IdentityVolume = "tulle-identity" // token and roots, projected
	IdentityDir    = "/var/run/tulle"
	TokenFile      = "token"
	RootsFile      = RootsKey
)

// What the injector adds to a pod.
const (
	ProxyContainer = "tulle-proxy"
	InitContainer  = "tulle-init" // only without the CNI plugin
	// DirectPortsVariable is in the environment of the proxy's container: the
	// ports at which others reach the application without it, as the pod was
	// admitted. The annotation that says the same can be changed while the pod
	// runs, when its redirect is set already; this cannot.
	DirectPortsVariable = "TULLE_DIRECT_PORTS"
	// MeshedLabel marks a pod with a proxy: MeshedLabel=true.
	MeshedLabel = "tulle.dev/meshed"
	// InjectedAnnotation is on a pod with a proxy, and names the version that
	// added it. The CNI plugin redirects the traffic of pods that carry it, and
	// of no others, but for what RedirectAnnotation says.
	InjectedAnnotation = "tulle.dev/injected"
	// RedirectAnnotation is RedirectInit on a pod with InitContainer: that one
	// redirects the traffic, and the CNI plugin leaves it alone, where there is one.
	RedirectAnnotation = "tulle.dev/redirect"
	RedirectInit       = "init-container"
)

// Labels and annotations by which a user asks for something. The injector's
// table says which values each may have.
const (
	Prefix = "tulle.dev/"

	// Inject is a label of namespaces, since webhooks select by labels: enabled.
	// The control plane sets it on namespaces with the annotation of the same
	// name. On pods, disabled opts out, as a label (the webhook never sees the
	// pod) or as an annotation.
	Inject   = "tulle.dev/inject"
	Enabled  = "enabled"
	Disabled = "disabled"

	// Policy is an annotation of namespaces: permissive (or nothing), or strict.
	Policy     = "tulle.dev/policy"
	Permissive = "permissive"
	Strict     = "strict"

	// Annotations of pods, or of their namespace as a default. Lists of ports
	// are separated by commas and may hold ranges: 3306,4000-4010. They add to
	// what is skipped anyway.
	SkipInboundPorts  = "tulle.dev/skip-inbound-ports"
	SkipOutboundPorts = "tulle.dev/skip-outbound-ports"
	OpaquePorts       = "tulle.dev/opaque-ports"
	Protocols         = "tulle.dev/protocols" // 8080=http/1,9090=http/2,5432=tcp
	LogLevel          = "tulle.dev/log-level" // debug, info, warn or error
	CPURequest        = "tulle.dev/cpu-request"
	CPULimit          = "tulle.dev/cpu-limit"
	MemoryRequest     = "tulle.dev/memory-request"
	MemoryLimit       = "tulle.dev/memory-limit"
)
