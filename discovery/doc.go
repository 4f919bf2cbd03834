// Package discovery knows who is behind an address.
//
//	state, err := discovery.NewState(discovery.Config{...})
//	go state.Run(ctx) // ends the leases that were lost
//	lease, err := state.Join(discovery.JoinRequest{Service: "web", Ports: []uint16{8080}})
//	lease.SetReady(true)
//	file := &discovery.CatalogFile{Path: "services.yaml", State: state}
//	server := discovery.NewServer(discovery.ServerConfig{State: state})
//
// The model: services are run by Tulle (their replicas hold leases) or listed
// in a catalog file. State is the one writer; it publishes immutable Snapshots,
// which DNS, the API and every watch read without locks. A State also hands out
// the addresses: of replicas, and of services, whose addresses exist only in
// DNS and here, never on an interface.
//
// Not here: health checks (a proxy sees failures itself) and DNS.
package discovery
