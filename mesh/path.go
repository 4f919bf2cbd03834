package mesh

// Path is what a control plane knows of the way from a client to a server, for
// people who ask why the two do or do not talk.
type Path struct {
	Client PathEnd    `json:"client"`
	Server PathEnd    `json:"server"`
	Ports  []PathPort `json:"ports"` // of the server: the one asked for, else all; number 0 is any
}

// Kinds of a PathEnd.
const (
	PathService  = "service"       // has an address of its own, which leads to its endpoints
	PathHeadless = "headless"      // a name for its endpoints' addresses
	PathExternal = "external name" // a name for another name
	PathCatalog  = "catalog"       // of the catalog file
	PathWorkload = "workload"      // dialled by its own address
	PathHost     = "host"          // the machine itself, outside the mesh
)

// PathEnd is one end of a Path.
type PathEnd struct {
	Name      string       `json:"name"`           // as the views call it: "web", in Kubernetes "web.shop"
	Also      []string     `json:"also,omitempty"` // what else the views may call it
	Namespace string       `json:"namespace,omitempty"`
	Kind      string       `json:"kind"`
	Names     []string     `json:"names"`            // in DNS
	Addresses []string     `json:"addresses"`        // that these resolve to
	Target    string       `json:"target,omitempty"` // of an external name
	Hint      string       `json:"hint,omitempty"`   // command that shows what there is, for when nobody is
	Members   []PathMember `json:"members"`          // of the client; the server's are in its ports
}

// PathPort is one port of the server.
type PathPort struct {
	Port      uint16       `json:"port"`
	Protocol  string       `json:"protocol,omitempty"` // declared; "": to be found out
	Declared  string       `json:"declared,omitempty"` // where: "appProtocol"
	Missing   bool         `json:"missing,omitempty"`  // the server has no such port
	Others    []uint16     `json:"others,omitempty"`   // those it declares, where this one is not among them
	Endpoints []PathMember `json:"endpoints"`
}

// PathMember is one workload at an end of a Path.
type PathMember struct {
	Workload string `json:"workload,omitempty"`
	Address  string `json:"address"`            // of an endpoint with its port
	Identity string `json:"identity,omitempty"` // "": others cannot expect mutual TLS of it
	Plain    string `json:"plain,omitempty"`    // why there is no identity
	Remedy   string `json:"remedy,omitempty"`   // what to type about that
	State    string `json:"state"`              // PathReady, or why it is not
	Used     bool   `json:"used"`               // of an endpoint: the client may be sent there
	Unused   string `json:"unused,omitempty"`   // why it is not
	Strict   bool   `json:"strict,omitempty"`   // refuses callers without an identity
	Node     string `json:"node,omitempty"`
	Zone     string `json:"zone,omitempty"`
	// SkipOutbound are ports to which its connections go around its proxy, as
	// the annotation has them.
	SkipOutbound string `json:"skip_outbound,omitempty"`
}

// PathReady is the state of a PathMember with which all is well.
const PathReady = "ready"
