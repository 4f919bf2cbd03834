package inject

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/tulle-mesh/tulle/mesh"
)

// handler is what a probe or a lifecycle hook does.
type handler struct {
	HTTPGet   *httpGet   `json:"httpGet"`
	TCPSocket *tcpSocket `json:"tcpSocket"`
	GRPC      *grpcCheck `json:"grpc"`
}

type httpGet struct {
	Path        string          `json:"path"`
	Port        json.RawMessage `json:"port"` // a number, or a port's name
	Host        string          `json:"host"`
	Scheme      string          `json:"scheme"`
	HTTPHeaders json.RawMessage `json:"httpHeaders"`
}

type tcpSocket struct {
	Port json.RawMessage `json:"port"`
	Host string          `json:"host"`
}

type grpcCheck struct {
	Port    int    `json:"port"`
	Service string `json:"service"`
}

// probe is one that the proxy is to make.
type probe struct {
	pointer string          // of the handler's parent in the pod
	action  string          // which field of it: httpGet, tcpSocket or grpc
	name    string          // CONTAINER/KIND
	target  string          // what to ask, as -probe takes it
	headers json.RawMessage // for HTTP
}

// probesOf returns what the kubelet would ask of the pod's own address.
func probesOf(p *pod) []probe {
	var probes []probe
	for _, list := range []struct {
		path       string
		containers []podContainer
	}{{"/spec/initContainers", p.Spec.InitContainers}, {"/spec/containers", p.Spec.Containers}} {
		for i, c := range list.containers {
			at := pointer(list.path, i)
			kinds := []struct {
				field, kind string
				handler     *handler
			}{
				{"startupProbe", "startup", c.StartupProbe}, {"livenessProbe", "liveness", c.LivenessProbe}, {"readinessProbe", "readiness", c.ReadinessProbe},
			}
			if c.Lifecycle != nil {
				kinds = append(kinds, []struct {
					field, kind string
					handler     *handler
				}{{"lifecycle/postStart", "post-start", c.Lifecycle.PostStart}, {"lifecycle/preStop", "pre-stop", c.Lifecycle.PreStop}}...)
			}
			for _, k := range kinds {
				if found, ok := readProbe(c, k.handler); ok {
					found.pointer, found.name = at+"/"+k.field, c.Name+"/"+k.kind
					probes = append(probes, found)
				}
			}
		}
	}
	return probes
}

// readProbe returns what the proxy has to do in the kubelet's place; false if
// the probe does not go to the pod's address, or to no port that could be found.
func readProbe(c podContainer, h *handler) (probe, bool) {
	switch {
	case h == nil:
	case h.HTTPGet != nil && h.HTTPGet.Host == "":
		port, ok := c.port(h.HTTPGet.Port)
		scheme := strings.ToLower(h.HTTPGet.Scheme)
		if scheme == "" {
			scheme = "http"
		}
		path := h.HTTPGet.Path
		if !strings.HasPrefix(path, "/") {
			path = "/" + path
		}
		return probe{action: "httpGet", target: fmt.Sprintf("%s://:%d%s", scheme, port, path), headers: h.HTTPGet.HTTPHeaders}, ok
	case h.TCPSocket != nil && h.TCPSocket.Host == "":
		port, ok := c.port(h.TCPSocket.Port)
		return probe{action: "tcpSocket", target: fmt.Sprintf("tcp://:%d", port)}, ok
	case h.GRPC != nil:
		ok := h.GRPC.Port > 0 && h.GRPC.Port < 1<<16
		return probe{action: "grpc", target: fmt.Sprintf("grpc://:%d/%s", h.GRPC.Port, h.GRPC.Service)}, ok
	}
	return probe{}, false
}

// port finds the number of a port, which may be given by its name.
func (c podContainer) port(raw json.RawMessage) (int, bool) {
	var n int
	if json.Unmarshal(raw, &n) == nil {
		return n, n > 0 && n < 1<<16
	}
	var name string
	if json.Unmarshal(raw, &name) != nil {
		return 0, false
	}
	for _, p := range c.Ports {
		if p.Name == name && name != "" {
			return p.ContainerPort, true
		}
	}
	n, err := strconv.Atoi(name)
	return n, err == nil && n > 0 && n < 1<<16
}

// operations send the kubelet to the proxy's admin port.
func (p probe) operations() []Operation {
	get := map[string]any{"path": "/probe/" + p.name, "port": mesh.AdminPort}
	if len(p.headers) > 0 {
		get["httpHeaders"] = p.headers
	}
	if p.action == "httpGet" {
		return []Operation{{Op: "replace", Path: p.pointer + "/httpGet", Value: get}}
	}
	return []Operation{
		{Op: "remove", Path: p.pointer + "/" + p.action},
		{Op: "add", Path: p.pointer + "/httpGet", Value: get},
	}
}

// argument is how the proxy is told. The kubelet expands $(NAME) in arguments,
// and leaves a doubled dollar sign alone.
func (p probe) argument() string {
	return "-probe=" + p.name + "=" + strings.ReplaceAll(p.target, "$(", "$$(")
}
