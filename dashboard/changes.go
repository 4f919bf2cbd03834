package dashboard

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// Change is something that happened, in a sentence.
type Change struct {
	ID       uint64 `json:"id"`
	Time     string `json:"time"`
	Kind     string `json:"kind"`
	Good     bool   `json:"good"` // false: somebody should look at it
	Service  string `json:"service,omitempty"`
	Workload string `json:"workload,omitempty"`
	Text     string `json:"text"`
}

// Kinds of changes.
const (
	workloadAppeared   = "workload-appeared"
	workloadLeft       = "workload-left"
	proxyLost          = "proxy-lost"
	proxyBack          = "proxy-back"
	replicaReady       = "replica-ready"
	replicaNotReady    = "replica-not-ready"
	successDropped     = "success-dropped"
	successRecovered   = "success-recovered"
	certificateRenewal = "certificate-renewed"
	rootAdded          = "root-added"
	rootRemoved        = "root-removed"
	controlStarted     = "control-started"
)

const (
	maxChanges = 100
	// A service whose success over a minute falls below badSuccess is told of,
	// and again once it is above goodSuccess.
	badSuccess    = 0.99
	goodSuccess   = 0.999
	healthSlices  = int(time.Minute / slice)
	fewestFailure = 3 // in a minute, to be told of
)

// changes are the newest things that happened. Collector.mu guards them.
type changes struct {
	last     uint64
	list     []Change // oldest first
	replicas map[string]replicaSeen
	roots    map[string]string // subject by digest; nil before the first look
	health   map[string]*health
}

type replicaSeen struct {
	service string
	ready   bool
}

// health is how a service did in the last minute.
type health struct {
	slices [healthSlices]counts
	bad    bool
}

func (c *changes) add(now time.Time, change Change) {
	c.last++
	change.ID, change.Time = c.last, stamp(now)
	if len(c.list) == maxChanges {
		c.list = slices.Delete(c.list, 0, 1)
	}
	c.list = append(c.list, change)
}

// newest returns a copy, newest first.
func (c *changes) newest() []Change {
	list := make([]Change, len(c.list))
	for i := range list {
		list[i] = c.list[len(list)-1-i]
	}
	return list
}

func certificateRenewed(r *record) Change {
	return Change{Kind: certificateRenewal, Good: true, Service: r.service, Workload: r.workload,
		Text: fmt.Sprintf("%s renewed its certificate", r.workload)}
}

// seeReplicas compares the workloads with those seen before. Those that have
// ended stay in the inventory for a while, with the way they ended for a state.
func (c *changes) seeReplicas(now time.Time, workloads []*tullev1.Workload) {
	first := c.replicas == nil
	seen, ends := make(map[string]replicaSeen, len(workloads)), map[string]string{}
	for _, w := range workloads {
		if strings.HasPrefix(w.State, "exited") {
			ends[w.Replica] = w.State
			continue
		}
		seen[w.Replica] = replicaSeen{w.Service, isReady(w.State)}
	}
	names := make([]string, 0, len(seen))
	for name := range seen {
		names = append(names, name)
	}
	for name := range c.replicas {
		if _, ok := seen[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		before, was := c.replicas[name]
		after, is := seen[name]
		if change, ok := replicaChange(name, before, after, was, is, ends[name]); ok && !first {
			c.add(now, change)
		}
	}
	c.replicas = seen
}

func replicaChange(name string, before, after replicaSeen, was, is bool, end string) (Change, bool) {
	change := Change{Service: after.service, Workload: name, Good: true}
	switch {
	case !was:
		change.Kind, change.Text = workloadAppeared, name+" has started"
		if after.ready {
			change.Text += " and is ready"
		}
	case !is:
		change.Kind, change.Service, change.Text = workloadLeft, before.service, name+" has gone"
		if end != "" {
			change.Good, change.Text = end == "exited (0)", fmt.Sprintf("%s has gone, %s", name, end)
		}
	case before.ready && !after.ready:
		change.Kind, change.Good, change.Text = replicaNotReady, false, name+" is not ready any more"
	case !before.ready && after.ready:
		change.Kind, change.Text = replicaReady, name+" is ready"
	default:
		return Change{}, false
	}
	return change, true
}

// seeRoots compares the trusted roots with those seen before.
func (c *changes) seeRoots(now time.Time, roots []*x509.Certificate) {
	seen := make(map[string]string, len(roots))
	for _, r := range roots {
		seen[digestOf(r)] = r.Subject.String()
	}
	if c.roots != nil {
		for digest, subject := range seen {
			if _, ok := c.roots[digest]; !ok {
				c.add(now, Change{Kind: rootAdded, Good: true, Text: fmt.Sprintf("a root is trusted from now on: %s (%.8s)", subject, digest)})
			}
		}
		for digest, subject := range c.roots {
			if _, ok := seen[digest]; !ok {
				c.add(now, Change{Kind: rootRemoved, Good: true, Text: fmt.Sprintf("a root is not trusted any more: %s (%.8s)", subject, digest)})
			}
		}
	}
	c.roots = seen
}

// seeSlice takes what each service came to in a slice that was closed.
func (c *changes) seeSlice(n int64, services map[string]counts) {
	if c.health == nil {
		c.health = map[string]*health{}
	}
	for name := range services {
		if c.health[name] == nil {
			c.health[name] = &health{}
		}
	}
	for name, h := range c.health {
		h.slices[n%int64(healthSlices)] = services[name]
		var minute counts
		for _, s := range h.slices {
			minute = minute.plus(s)
		}
		if minute.requests == 0 {
			delete(c.health, name)
			continue
		}
		success := 1 - min(float64(minute.failures)/float64(minute.requests), 1)
		switch {
		case !h.bad && success < badSuccess && minute.failures >= fewestFailure:
			h.bad = true
			c.add(sliceStart(n+1), Change{Kind: successDropped, Service: name,
				Text: fmt.Sprintf("success of %s fell to %.1f %%", name, percentOf(success))})
		case h.bad && success >= goodSuccess:
			h.bad = false
			c.add(sliceStart(n+1), Change{Kind: successRecovered, Good: true, Service: name,
				Text: fmt.Sprintf("success of %s is back at %.1f %%", name, percentOf(success))})
		}
	}
}

// percentOf makes a share a percentage that is never rounded up.
func percentOf(share float64) float64 { return float64(int(share*1000)) / 10 }

// Observe tells the Collector what the control plane knows, for changes to be
// noticed while nobody looks. Roots may be nil.
func (c *Collector) Observe(inventory *tullev1.ListResponse, roots []*x509.Certificate) {
	if inventory != nil {
		c.inventory.Store(inventory)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.advanceLocked(now, true)
	if inventory != nil {
		c.changes.seeReplicas(now, inventory.Workloads)
	}
	if roots != nil {
		c.changes.seeRoots(now, roots)
	}
}
