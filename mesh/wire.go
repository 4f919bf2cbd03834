package mesh

// Ports of a workload's proxy, inside the workload's own network namespace.
// The redirect sends the workload's traffic to the first two.
const (
	OutboundPort = 4140 // 127.0.0.1 and [::1]: what the workload dials
	InboundPort  = 4143 // every address: what others dial
	AdminPort    = 4191 // GET /metrics, /ready, /live; never redirected

	// RedirectProbePort is where nobody listens: a connection from outside to it
	// reaches the proxy by the redirect or not at all. On Kubernetes the kubelet's
	// startup probe makes one: GET /ready.
	RedirectProbePort = 4142
)

// ControlPort is where the control plane serves gRPC to the proxies.
const ControlPort = 4190

// ProxyUID is the user a proxy runs as. The redirect lets this user's own
// connections pass, so nothing else of a workload may run as it.
const ProxyUID = 2102

// RedirectEBPF names the redirect under which a connection's own address is where
// its client meant to go, clients call any of 127.0.0.1 to 127.0.0.64, and the
// application can be shown the client's address.
const RedirectEBPF = "ebpf"

// RedirectCNI says that the node's agent has set the redirect up: which one it
// chose there is not known to who starts the proxy, which finds out.
const RedirectCNI = "cni"

// RedirectNetfilter stands for nftables or iptables where it is not known which:
// connection tracking knows where a client meant to go.
const RedirectNetfilter = "netfilter"

// ALPN protocol names of mesh connections: they tell the inbound proxy what is
// inside, so that it never sniffs traffic of the mesh.
//
// What goes over the wire under a name never changes; what is new gets a name of
// its own. Whoever dials offers all it knows of a kind, and is answered with the
// newest that the other side knows, too: so proxies of two versions understand each
// other while the one replaces the other. (HTTP/2 has its SETTINGS for that.)
const (
	ALPNHTTP1 = "tulle-http1/2"
	ALPNHTTP2 = "tulle-h2"
	ALPNTCP   = "tulle-tcp/2"

	// Of proxies before that: windows of sessions do not grow, frames of TCP streams
	// carry at most 64 KiB.
	ALPNHTTP1First = "tulle-http/1"
	ALPNTCPFirst   = "tulle-tcp"
)
