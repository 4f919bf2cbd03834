package discovery

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-mesh/tulle/mesh"
)

// HostName is who calls from the machine itself, outside the mesh.
const HostName = "host"

// Path returns what is known of the way from a client, a service or replica or
// HostName, to a server, a service or replica, perhaps with a port ("web:8080").
// The domain is that of the services' names in DNS. Errors say what to type.
func (s *Snapshot) Path(client, server, domain string) (*mesh.Path, error) {
	from, err := s.caller(client, domain)
	if err != nil {
		return nil, err
	}
	name, port, err := SplitPort(server)
	if err != nil {
		return nil, err
	}
	t, err := s.named(name, domain)
	if errors.Is(err, errUnknown) {
		return nil, fmt.Errorf("%w: its name resolves to nothing; what there is: tulle ps, tulle stat", err)
	}
	if err != nil {
		return nil, err
	}
	p := &mesh.Path{Client: from, Server: s.server(t, domain)}
	p.Ports = s.pathPorts(t, port)
	return p, nil
}

// SplitPort cuts the port off a server's name; 0 if it has none. What stands
// before a name in a URL, and after it, is taken off, and so are the brackets of
// an IPv6 address.
func SplitPort(server string) (name string, port uint16, err error) {
	if _, rest, ok := strings.Cut(server, "://"); ok {
		if i := strings.IndexAny(rest, "/?#"); i >= 0 {
			rest = rest[:i]
		}
		server = rest[strings.LastIndexByte(rest, '@')+1:]
	}
	if a, err := netip.ParseAddr(server); err == nil {
		return a.Unmap().String(), 0, nil
	}
	var number string
	var numbered bool
	if rest, ok := strings.CutPrefix(server, "["); ok {
		host, after, closed := strings.Cut(rest, "]")
		a, err := netip.ParseAddr(host)
		if number, numbered = strings.CutPrefix(after, ":"); err != nil || !closed || after != "" && !numbered {
			return "", 0, fmt.Errorf("%.80q: brackets go around an IPv6 address, as in [fd00::1]:8080", server)
		}
		name = a.Unmap().String()
	} else {
		name, number, numbered = strings.Cut(server, ":")
	}
	if !numbered {
		return name, 0, nil
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%.80q: the port must be 1 to 65535, as in %.80s", server, net.JoinHostPort(name, "8080"))
	}
	return name, uint16(n), nil
}

// caller describes who calls.
func (s *Snapshot) caller(name, domain string) (mesh.PathEnd, error) {
	if _, known := s.names[name]; name == HostName && !known {
		return mesh.PathEnd{
			Name: HostName, Kind: mesh.PathHost, Names: []string{}, Addresses: []string{},
			Members: []mesh.PathMember{{Workload: HostName, Plain: "programs of the host itself have no proxy", State: mesh.PathReady,
				Remedy: "run it with: sudo tulle run NAME -- COMMAND"}},
		}, nil
	}
	t, err := s.named(name, domain)
	if errors.Is(err, errUnknown) {
		return mesh.PathEnd{}, fmt.Errorf("%w: it does not run; what does: tulle ps", err)
	}
	if err != nil {
		return mesh.PathEnd{}, err
	}
	end := s.server(t, domain)
	if t.service.Source == Catalog {
		return end, fmt.Errorf("%.80q is of the catalog file: it is called, and what it calls the mesh does not see; name a workload of: tulle ps", name)
	}
	for i := range t.service.Replicas {
		if r := &t.service.Replicas[i]; t.replica == nil || t.replica.Name == r.Name {
			m := t.service.member(r)
			m.Address = addrText(r.Addr4, r.Addr6)
			end.Members = append(end.Members, m)
		}
	}
	return end, nil
}

// errUnknown is what every unknownError is.
var errUnknown = errors.New("nobody is called so")

// unknownError is a name that means nothing.
type unknownError string

func (e unknownError) Error() string {
	return fmt.Sprintf("no service or replica is called %.80q", string(e))
}
func (e unknownError) Is(target error) bool { return target == errUnknown }

// named finds a service or replica by its name, in DNS or not, or by its address.
func (s *Snapshot) named(name, domain string) (target, error) {
	plain := strings.TrimSuffix(name, ".")
	if t, ok := s.names[strings.TrimSuffix(plain, "."+domain)]; ok {
		return t, nil
	}
	if a, err := netip.ParseAddr(plain); err == nil {
		if t, ok := s.addrs[a.Unmap()]; ok {
			return t, nil
		}
		return target{}, fmt.Errorf("nothing of the mesh has the address %s: connections to it pass untouched, in plaintext; what there is: tulle ps", a)
	}
	if strings.Contains(name, "/") {
		return target{}, fmt.Errorf("%.80q: names have no kind on a host; type for instance: tulle why web catalog", name)
	}
	return target{}, unknownError(name)
}

func (s *Snapshot) server(t target, domain string) mesh.PathEnd {
	end := mesh.PathEnd{
		Name: t.service.Name, Kind: mesh.PathService, Names: []string{t.service.Name, t.service.Name + "." + domain},
		Addresses: addrTexts(t.service.VIP4, t.service.VIP6), Hint: "tulle ps", Members: []mesh.PathMember{},
	}
	switch {
	case t.service.Source == Catalog:
		end.Kind, end.Hint = mesh.PathCatalog, "tulle stat -o wide"
	case t.replica != nil:
		end.Kind, end.Names = mesh.PathWorkload, []string{t.replica.Name, t.replica.Name + "." + domain}
		end.Addresses = addrTexts(t.replica.Addr4, t.replica.Addr6)
	}
	return end
}

// pathPorts are the declared ports of the target, or the one that is asked for.
func (s *Snapshot) pathPorts(t target, asked uint16) []mesh.PathPort {
	ports := t.service.Ports
	if asked != 0 {
		ports = []uint16{asked}
	}
	if len(ports) == 0 {
		ports = []uint16{0}
	}
	list := make([]mesh.PathPort, 0, len(ports))
	for _, port := range ports {
		p := mesh.PathPort{Port: port, Endpoints: []mesh.PathMember{}}
		if t.service.Protocol != mesh.Unknown {
			p.Protocol, p.Declared = t.service.Protocol.String(), "the service"
		}
		if port != 0 && !slices.Contains(t.service.Ports, port) {
			p.Others = t.service.Ports // a run service answers on others, too
		}
		if t.service.Source == Catalog {
			p.Missing = p.Others != nil
			p.Endpoints = t.service.catalogMembers(port)
		}
		for i := range t.service.Replicas {
			if r := &t.service.Replicas[i]; t.replica == nil || t.replica.Name == r.Name {
				m := t.service.member(r)
				m.Address = addrText(r.Addr4, r.Addr6)
				if port != 0 {
					m.Address = netip.AddrPortFrom(firstAddr(r.Addr4, r.Addr6), port).String()
				}
				p.Endpoints = append(p.Endpoints, m)
			}
		}
		list = append(list, p)
	}
	return list
}

func (s *Service) member(r *Replica) mesh.PathMember {
	m := mesh.PathMember{Workload: r.Name, Identity: s.ID.String(), State: mesh.PathReady, Used: true, Strict: r.Strict}
	switch {
	case r.Lost:
		m.State, m.Unused = "lost", "its tulle run has not been heard of"
		m.Remedy = "tulle logs " + r.Name
	case !r.Ready:
		m.State, m.Unused = "not ready", "it does not accept connections on its ports yet"
		m.Remedy = "tulle logs " + r.Name
	}
	m.Used = r.Serving()
	return m
}

// catalogMembers are where a port of a catalog service leads to.
func (s *Service) catalogMembers(port uint16) []mesh.PathMember {
	list := []mesh.PathMember{}
	for _, vip := range []netip.Addr{s.VIP4, s.VIP6} {
		if !vip.IsValid() {
			continue
		}
		for _, addr := range s.endpointsFor(netip.AddrPortFrom(vip, port)) {
			if slices.ContainsFunc(list, func(m mesh.PathMember) bool { return m.Address == addr.String() }) {
				continue
			}
			list = append(list, mesh.PathMember{
				Address: addr.String(), Plain: "the catalog file lists it: no proxy of the mesh is there",
				State: mesh.PathReady, Used: true,
			})
		}
	}
	return list
}

func firstAddr(addr4, addr6 netip.Addr) netip.Addr {
	if addr4.IsValid() {
		return addr4
	}
	return addr6
}

func addrText(addr4, addr6 netip.Addr) string { return firstAddr(addr4, addr6).String() }

func addrTexts(addrs ...netip.Addr) []string {
	texts := []string{}
	for _, a := range addrs {
		if a.IsValid() {
			texts = append(texts, a.String())
		}
	}
	return texts
}
