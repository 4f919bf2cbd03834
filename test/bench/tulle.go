package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/tulle-mesh/tulle/dashboard"
)

// startTulle runs the product as a user would: a mesh, a server, a client.
func startTulle(ctx context.Context, l *lab) (*rig, error) {
	tulle := l.tulle()
	if _, err := l.start("tulle-up", tulle, "up"); err != nil {
		return nil, err
	}
	if err := patiently(ctx, 20*time.Second, func() error { _, err := tulleServices(ctx); return err }); err != nil {
		return nil, fmt.Errorf("tulle up: %w\n%s", err, l.said("tulle-up"))
	}
	server := fmt.Sprintf("server:%d,%d,%d", backendPorts[httpDoor], backendPorts[grpcDoor], backendPorts[tcpDoor])
	if _, err := l.start("tulle-server", tulle, "run", server, "--", l.self, "backend"); err != nil {
		return nil, err
	}
	if _, err := l.start("tulle-client", tulle, "run", "client", "--", l.self, "idle"); err != nil {
		return nil, err
	}
	r := &rig{client: "tulle-client-1", server: "tulle-server-1", doors: map[door]string{}}
	err := patiently(ctx, 20*time.Second, func() error { return l.findTulle(ctx, r) })
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, l.said("tulle"))
	}
	return r, nil
}

func (l *lab) tulle() string { return filepath.Join(l.bin, "tulle") }

// findTulle fills in where the mesh has put things.
func (l *lab) findTulle(ctx context.Context, r *rig) error {
	services, err := tulleServices(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(services, func(s dashboard.Service) bool { return s.Name == "server" && s.Ready == 1 })
	if i < 0 {
		return fmt.Errorf("no server is ready yet")
	}
	for _, text := range services[i].Addresses {
		if addr, err := netip.ParseAddr(text); err == nil && addr.Is4() {
			for d, port := range backendPorts {
				r.doors[d] = hostPort(text, port)
			}
		}
	}
	r.roots = nil
	for _, ns := range []string{r.client, r.server} {
		pid, err := processIn(ns, "tulle-proxy")
		if err != nil {
			return err
		}
		r.roots = append(r.roots, pid)
	}
	if len(r.doors) == 0 {
		return fmt.Errorf("the server has no IPv4 address: %v", services[i].Addresses)
	}
	return nil
}

func tulleServices(ctx context.Context) ([]dashboard.Service, error) {
	return tulleView[dashboard.Service](ctx, "services")
}

// tulleView asks the mesh's API.
func tulleView[T any](ctx context.Context, name string) ([]T, error) {
	var dialer net.Dialer
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", "/run/tulle/api.sock")
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/api/v1/"+name, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var answer dashboard.Answer[T]
	err = json.NewDecoder(response.Body).Decode(&answer)
	return answer.Items, err
}
