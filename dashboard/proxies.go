package dashboard

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// Proxy is one row of the proxies view.
type Proxy struct {
	Workload     string `json:"workload"`
	Service      string `json:"service"`
	Identity     string `json:"identity"`
	Address      string `json:"address"`
	State        string `json:"state"` // "connected", "ended" as it should, "lost"
	Version      string `json:"version"`
	Redirect     string `json:"redirect"`
	Started      string `json:"started"` // times are RFC 3339, "" if unknown
	LastReport   string `json:"last_report"`
	Gone         string `json:"gone,omitempty"`
	RSS          uint64 `json:"rss_bytes"`
	Connections  uint32 `json:"open_connections"`
	Destinations uint32 `json:"watched_destinations"`
	CertExpires  string `json:"certificate_expires"`
	Renewals     int    `json:"certificate_renewals"`
	Edges        int    `json:"edges"`
	DroppedEdges uint64 `json:"dropped_edges,omitempty"` // beyond what is kept of one proxy

	Verdicts []VerdictView `json:"verdicts"`
}

// VerdictView says what a destination's connections are taken to speak, and why.
type VerdictView struct {
	Destination string `json:"destination"`
	Service     string `json:"service"`
	Protocol    string `json:"protocol"`
	Reason      string `json:"reason"`
}

func (s *snapshot) proxyRows() []Proxy {
	rows := []Proxy{}
	for _, p := range s.proxies {
		if p.workload == "" {
			continue // totals only
		}
		row := Proxy{
			Workload: p.workload, Service: p.service, Identity: p.id.String(), Address: p.address, State: p.state(),
			Version: p.version, Redirect: p.redirect, LastReport: stamp(p.heard),
			RSS: p.stats.rss, Connections: p.stats.connections, Destinations: p.stats.watched,
			CertExpires: stamp(p.cert.notAfter), Renewals: p.cert.renewals, Edges: p.rows, DroppedEdges: p.dropped,
			Verdicts: p.verdictViews(),
		}
		if p.start > 0 && p.start < maxUnix*1000 {
			row.Started = stamp(time.UnixMilli(p.start))
		}
		if !p.connected {
			row.Gone = stamp(p.gone)
		}
		rows = append(rows, row)
	}
	return rows
}

// verdictViews are those on the destinations that the workload calls, and what
// callers of the workload itself were found to speak.
func (p *proxyState) verdictViews() []VerdictView {
	views := make([]VerdictView, 0, len(p.verdicts)+len(p.spoken))
	for _, v := range p.verdicts {
		views = append(views, VerdictView{v.address, v.service, v.protocol, v.reason})
	}
	for _, key := range p.spoken {
		view := VerdictView{Destination: p.workload, Service: p.service, Protocol: key.protocol, Reason: "the first bytes of a caller"}
		if key.security == mesh.MutualTLS.String() {
			view.Reason = "told by a caller's proxy"
		}
		if !slices.Contains(views, view) {
			views = append(views, view)
		}
	}
	slices.SortFunc(views, func(a, b VerdictView) int {
		return cmpStrings(a.Service, b.Service, a.Destination, b.Destination, a.Protocol, b.Protocol, a.Reason, b.Reason)
	})
	return views
}

func (p *proxyState) state() string {
	switch {
	case p.connected:
		return "connected"
	case p.ended:
		return "ended"
	}
	return "lost"
}

// Identity is one row of the identities view: a name and who holds it.
type Identity struct {
	Identity  string       `json:"identity"`
	Name      string       `json:"name"`
	Namespace string       `json:"namespace"`
	Holders   []HolderView `json:"holders"`
}

// Root is a certificate authority that the mesh trusts.
type Root struct {
	Subject string `json:"subject"`
	SHA256  string `json:"sha256"` // of the certificate, hexadecimal
	Issued  string `json:"issued"`
	Expires string `json:"expires"`
	Holders int    `json:"holders"` // connected proxies whose certificate it signed
}

// HolderView is a proxy that holds an identity, and its certificate.
type HolderView struct {
	Workload string `json:"workload"`
	Address  string `json:"address"`
	State    string `json:"state"`
	Issuer   string `json:"issuer"`
	Root     string `json:"root"` // SHA-256 of the one that signed it; "" if unknown
	// Serial and Issued are of the certificate that the proxy connected with;
	// "" once it has renewed that.
	Serial   string `json:"serial"`
	Issued   string `json:"issued"`
	Expires  string `json:"expires"`
	Renewals int    `json:"renewals"` // seen since the proxy first attached

	service string // that it is a replica of: it may be asked for by that name
}

// Identities is the answer about who holds which identity.
type Identities struct {
	Answer[Identity]
	Roots []Root `json:"roots"`
}

func digestOf(c *x509.Certificate) string {
	digest := sha256.Sum256(c.Raw)
	return hex.EncodeToString(digest[:])
}

func (s *snapshot) identities(roots []*x509.Certificate) ([]Identity, []Root) {
	trusted, byKey := make([]Root, 0, len(roots)), map[string]int{}
	for i, r := range roots {
		trusted = append(trusted, Root{Subject: r.Subject.String(), SHA256: digestOf(r), Issued: stamp(r.NotBefore), Expires: stamp(r.NotAfter)})
		byKey[string(r.SubjectKeyId)] = i
	}
	rows := []Identity{}
	for _, p := range s.proxies {
		if p.workload == "" {
			continue
		}
		i := slices.IndexFunc(rows, func(r Identity) bool { return r.Identity == p.id.String() })
		if i < 0 {
			i = len(rows)
			rows = append(rows, Identity{Identity: p.id.String(), Name: p.id.Account, Namespace: p.id.Namespace})
		}
		holder := HolderView{
			Workload: p.workload, Address: p.address, State: p.state(), Issuer: p.cert.issuer, Serial: p.cert.serial,
			Issued: stamp(p.cert.notBefore), Expires: stamp(p.cert.notAfter), Renewals: p.cert.renewals,
			service: p.service,
		}
		if root, ok := byKey[p.cert.authority]; ok && p.cert.authority != "" {
			if holder.Root = trusted[root].SHA256; p.connected {
				trusted[root].Holders++
			}
		}
		rows[i].Holders = append(rows[i].Holders, holder)
	}
	return rows, trusted
}

// Workload is one row of the workloads view. Of the command only the program's
// name is told: arguments may hold secrets.
type Workload struct {
	Replica  string   `json:"replica"`
	Service  string   `json:"service"`
	Identity string   `json:"identity"`
	State    string   `json:"state"`
	Ports    []uint32 `json:"ports"`
	Address4 string   `json:"address4"`
	Address6 string   `json:"address6"`
	Started  string   `json:"started"`
	PID      int32    `json:"pid"`
	Program  string   `json:"program"`
}

func (s *snapshot) workloads() []Workload {
	rows := []Workload{}
	for _, w := range s.inventory.GetWorkloads() {
		row := Workload{
			Replica: w.Replica, Service: w.Service, Identity: w.Identity, State: w.State, Ports: w.Ports,
			Address4: withoutLength(w.Address4), Address6: withoutLength(w.Address6), PID: w.Pid,
		}
		if len(w.Command) > 0 {
			row.Program = w.Command[0]
		}
		if w.StartedUnix > 0 && w.StartedUnix < maxUnix {
			row.Started = stamp(time.Unix(w.StartedUnix, 0))
		}
		if row.Ports == nil {
			row.Ports = []uint32{}
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b Workload) int { return cmpStrings(a.Replica, b.Replica) })
	return rows
}
