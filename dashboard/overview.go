package dashboard

import (
	"crypto/x509"
	"time"
)

// Overview is the mesh at a glance.
type Overview struct {
	Now              time.Time    `json:"now"`
	Range            string       `json:"range"`
	Totals           Totals       `json:"totals"`
	Services         int          `json:"services"`
	ServicesNotReady int          `json:"services_not_ready"`
	Proxies          int          `json:"proxies"` // connected
	ProxiesLost      int          `json:"proxies_lost"`
	Certificates     Certificates `json:"certificates"`
	Changes          []Change     `json:"changes"` // newest first
	Coverage         Coverage     `json:"coverage"`
}

// Totals are the figures of all traffic.
type Totals struct {
	Figures
	MTLS    *float64 `json:"mtls"`
	History Points   `json:"history"`
}

// Certificates says how long those in use are good for.
type Certificates struct {
	Count           int    `json:"count"` // held by connected proxies
	SoonestExpiry   string `json:"soonest_expiry"`
	SoonestWorkload string `json:"soonest_workload"`
	Roots           int    `json:"roots"`
	RootExpiry      string `json:"root_expiry"` // of the one that ends first
}

func (t *tables) overview(services []Service, roots []*x509.Certificate) Overview {
	o := Overview{
		Now: t.now.UTC(), Range: t.window.String(), Changes: t.changes, Coverage: t.coverage, Services: len(services),
		Totals:       Totals{Figures: t.figures(t.all), MTLS: share(t.all.mtls, t.all.counts.requests), History: t.points(t.all)},
		Certificates: t.certificates(roots),
	}
	for _, s := range services {
		if s.Ready < s.Replicas {
			o.ServicesNotReady++
		}
	}
	for i := range t.proxies {
		switch p := &t.proxies[i]; {
		case p.workload == "":
		case p.connected:
			o.Proxies++
		case !p.ended:
			o.ProxiesLost++
		}
	}
	return o
}

func (s *snapshot) certificates(roots []*x509.Certificate) Certificates {
	c := Certificates{Roots: len(roots)}
	var soonest, rootEnd time.Time
	for i := range s.proxies {
		p := &s.proxies[i]
		if !p.connected || p.cert.notAfter.IsZero() {
			continue
		}
		if c.Count++; soonest.IsZero() || p.cert.notAfter.Before(soonest) {
			soonest, c.SoonestWorkload = p.cert.notAfter, p.workload
		}
	}
	for _, r := range roots {
		if rootEnd.IsZero() || r.NotAfter.Before(rootEnd) {
			rootEnd = r.NotAfter
		}
	}
	c.SoonestExpiry, c.RootExpiry = stamp(soonest), stamp(rootEnd)
	return c
}
