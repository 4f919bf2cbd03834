package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/tulle-mesh/tulle/dashboard"
)

const apiSocket = "/run/tulle/api.sock"

// api asks the mesh for what it sees.
type api struct{ client *http.Client }

func newAPI() *api {
	var dialer net.Dialer
	return &api{client: &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", apiSocket)
		}},
	}}
}

func (a *api) get(path string, into any) error {
	response, err := a.client.Get("http://localhost/api/v1/" + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: the mesh answered %s", path, response.Status)
	}
	return json.NewDecoder(response.Body).Decode(into)
}

// answers tells whether a mesh is up.
func (a *api) answers() bool {
	var about dashboard.About
	return a.get("about", &about) == nil
}

// page returns where a browser finds the dashboard.
func (a *api) page() (string, error) {
	var about dashboard.About
	err := a.get("about", &about)
	return about.URL, err
}

// ready tells whether each service has as many ready replicas as it should.
func (a *api) ready(wanted map[string]int) (bool, error) {
	var workloads dashboard.Answer[dashboard.Workload]
	if err := a.get("workloads", &workloads); err != nil {
		return false, err
	}
	have := map[string]int{}
	for _, w := range workloads.Items {
		if w.State == "ready" {
			have[w.Service]++
		}
	}
	for service, n := range wanted {
		if have[service] < n {
			return false, nil
		}
	}
	return true, nil
}

// view is what the mesh has seen.
type view struct {
	edges    []dashboard.Edge
	replicas []dashboard.Replica
}

// look returns what was seen since a time ago ("10s"), or since "start".
func (a *api) look(since string) (view, error) {
	var edges dashboard.Answer[dashboard.Edge]
	if err := a.get("edges?range="+since, &edges); err != nil {
		return view{}, err
	}
	var replicas dashboard.Answer[dashboard.Replica]
	if err := a.get("replicas?range="+since, &replicas); err != nil {
		return view{}, err
	}
	return view{edges.Items, replicas.Items}, nil
}

// settled waits until the proxies have reported all that the source of load
// counted. If they do not, what there is is returned, and the verdict tells.
func (a *api) settled(c counted) (view, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		seen, err := a.look("start")
		if err != nil {
			return view{}, err
		}
		if seen.requests("load", "web") == uint64(c.Sent) && seen.requests("web", "catalog") >= uint64(c.Sent) || time.Now().After(deadline) {
			return seen, nil
		}
	}
}

func (v view) requests(source, service string) (n uint64) {
	for _, e := range v.edges {
		if e.Source == source && e.Destination == service {
			n += e.TotalRequests
		}
	}
	return n
}
