package host

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/discovery"
	"github.com/tulle-mesh/tulle/mesh"
)

// path tells the way from one workload to another. Of those that have ended only
// their records know.
func (l *leases) path(client, server string) (*mesh.Path, error) {
	p, err := l.state.Load().Path(client, server, Domain)
	if err == nil {
		return p, nil
	}
	for _, name := range []string{client, server} {
		if plain, _, splitErr := discovery.SplitPort(name); splitErr == nil {
			ended, removed := l.ended(strings.TrimSuffix(plain, "."+Domain))
			if removed {
				return nil, fmt.Errorf("%s does not run: it has ended, %s, and left no trace; what runs: tulle ps", name, ended)
			}
			if ended != "" {
				return nil, fmt.Errorf("%s has ended: %s; what it wrote: tulle logs %s", name, ended, plain)
			}
		}
	}
	return nil, err
}

// ended returns how a service or replica has ended of which none is left, "" for
// all others, and whether no more than that is left of it.
func (l *leases) ended(name string) (state string, removed bool) {
	snapshot := l.state.Load()
	if replica, _ := snapshot.Replica(name); replica != nil || snapshot.Service(name) != nil {
		return "", false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.replicas {
		if r := h.record; r.Exited && (r.Service == name || r.Replica == name) {
			return h.state(), false
		}
	}
	for _, d := range slices.Backward(l.departed) {
		if d.service == name || d.replica == name {
			return d.state, true
		}
	}
	return "", false
}
