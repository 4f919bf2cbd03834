package inject

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// Operation is one step of a JSON patch (RFC 6902): add, replace or remove.
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// Origin is what is known of a pod besides itself.
type Origin struct {
	Namespace string            // where it is to run; "": what it says, or unknown
	Defaults  map[string]string // annotations of that namespace
	Workload  string            // what it belongs to; "": what it says
	Job       bool              // it is to end by itself; of a pod this is seen
}

// Result is what is to happen to a pod.
type Result struct {
	Patch    []Operation // none: leave it as it is
	Skipped  string      // why there is no patch; "": there is one, or it has a proxy already
	Warnings []string    // for the user
	Owner    Owner       // what the pod belongs to, as far as it says
}

// Owner is the controller of a pod.
type Owner struct{ APIVersion, Kind, Name, UID string }

// Patch returns what puts the proxy into a pod, which is JSON. An error is for
// the pod's author: all that is wrong with what he asks for.
func (c Config) Patch(object []byte, from Origin) (Result, error) {
	var p pod
	if err := json.Unmarshal(object, &p); err != nil {
		return Result{}, fmt.Errorf("not a pod: %w", err)
	}
	if len(p.Spec.Containers) == 0 {
		return Result{}, errors.New("not a pod: it has no containers")
	}
	nameless := p.Metadata == nil // a template may be
	if nameless {
		p.Metadata = &metadata{}
	}
	o := p.controller()
	result := Result{Owner: Owner{o.APIVersion, o.Kind, o.Name, o.UID}}
	if p.has(cluster.ProxyContainer) {
		return result, nil
	}
	s := c.defaults()
	if err := errors.Join(s.readNamespace(from.Defaults), s.readPod(p.Metadata.Annotations)); err != nil {
		return result, err
	}
	if result.Skipped = c.reasonToSkip(&p, s, from); result.Skipped != "" {
		if !s.disabled { // else it is what the user wants
			result.Warnings = append(result.Warnings, result.Skipped)
		}
		return result, nil
	}
	if err := c.check(&p, s); err != nil {
		return result, err
	}
	if nameless {
		result.Patch = append(result.Patch, Operation{Op: "add", Path: "/metadata", Value: map[string]string{}})
	}
	result.Patch = append(result.Patch, c.patch(&p, s, from)...)
	return result, nil
}

func (c Config) reasonToSkip(p *pod, s settings, from Origin) string {
	switch {
	case s.disabled:
		return fmt.Sprintf("the pod is annotated %s: %s", cluster.Inject, cluster.Disabled)
	case p.Metadata.Labels[cluster.Inject] == cluster.Disabled:
		return fmt.Sprintf("the pod is labelled %s: %s", cluster.Inject, cluster.Disabled)
	case p.Spec.HostNetwork:
		return "no proxy: the pod uses its node's network (hostNetwork), where a redirect would catch everything on the node"
	case p.Spec.OS != nil && p.Spec.OS.Name == "windows":
		return "no proxy: the pod is for Windows"
	case !c.Native && (from.Job || p.controller().Kind == "Job"):
		return "no proxy: without restartable init containers (Kubernetes 1.29) a Job would never end"
	}
	return ""
}

// check reports what would not work with a proxy beside it.
func (c Config) check(p *pod, s settings) error {
	var errs []error
	containers := p.all()
	for _, at := range slices.Sorted(maps.Keys(containers)) {
		container := containers[at]
		if p.runsAs(container, mesh.ProxyUID) {
			errs = append(errs, fmt.Errorf("container %s runs as user %d, which is the proxy's: its traffic would go around the mesh; choose another runAsUser",
				container.Name, mesh.ProxyUID))
		}
		for _, port := range container.Ports {
			if (port.Protocol == "" || port.Protocol == "TCP") && proxyPort(port.ContainerPort) {
				errs = append(errs, fmt.Errorf("container %s declares port %d, which is the proxy's; choose another one, or opt out with the annotation %s: %s",
					container.Name, port.ContainerPort, cluster.Inject, cluster.Disabled))
			}
		}
	}
	if p.has(cluster.InitContainer) {
		errs = append(errs, fmt.Errorf("a container is named %s, which is ours", cluster.InitContainer))
	}
	for _, list := range [][]cluster.Ports{s.skipInbound} {
		for _, ports := range list {
			for _, own := range []uint16{mesh.InboundPort, mesh.OutboundPort, mesh.AdminPort, mesh.RedirectProbePort} {
				if ports.Contains(own) {
					errs = append(errs, fmt.Errorf("annotation %s: port %d is the proxy's own", cluster.SkipInboundPorts, own))
				}
			}
		}
	}
	return errors.Join(errs...)
}

func proxyPort(port int) bool {
	return port == mesh.InboundPort || port == mesh.OutboundPort || port == mesh.AdminPort || port == mesh.RedirectProbePort
}

// patch makes the operations. What changes containers comes before what adds
// some, which moves the others.
func (c Config) patch(p *pod, s settings, from Origin) []Operation {
	probes := probesOf(p)
	var patch []Operation
	for _, probe := range probes {
		patch = append(patch, probe.operations()...)
	}
	patch = append(patch, entries("/metadata/labels", p.Metadata.Labels, map[string]string{cluster.MeshedLabel: "true"})...)
	patch = append(patch, entries("/metadata/annotations", p.Metadata.Annotations, c.podAnnotations(s))...)
	if _, copied := p.Metadata.Annotations[cluster.RedirectAnnotation]; copied && c.CNI {
		patch = append(patch, Operation{Op: "remove", Path: "/metadata/annotations/" + escape(cluster.RedirectAnnotation)})
	}
	if p.Spec.Volumes == nil {
		patch = append(patch, Operation{Op: "add", Path: "/spec/volumes", Value: []any{}})
	}
	patch = append(patch, Operation{Op: "add", Path: "/spec/volumes/-", Value: identityVolume()})

	proxy := c.proxy(s, cmp.Or(from.Workload, p.workload()), probes)
	var inits []container
	if !c.CNI {
		inits = append(inits, c.redirect(s))
	}
	if c.Native {
		inits = append(inits, proxy)
	} else {
		patch = append(patch, Operation{Op: "add", Path: "/spec/containers/0", Value: proxy})
	}
	if len(inits) > 0 && p.Spec.InitContainers == nil {
		patch = append(patch, Operation{Op: "add", Path: "/spec/initContainers", Value: []any{}})
	}
	for i, init := range inits {
		patch = append(patch, Operation{Op: "add", Path: pointer("/spec/initContainers", i), Value: init})
	}
	return patch
}

// podAnnotations are what the pod is to say of itself. The CNI plugin reads no
// others, so defaults that concern it are written out.
func (c Config) podAnnotations(s settings) map[string]string {
	set := map[string]string{cluster.InjectedAnnotation: c.Version}
	if !c.CNI {
		set[cluster.RedirectAnnotation] = cluster.RedirectInit
	}
	for key, ports := range map[string][]cluster.Ports{
		cluster.SkipInboundPorts: s.skipInbound, cluster.SkipOutboundPorts: s.skipOutbound, cluster.OpaquePorts: s.opaque,
	} {
		if len(ports) > 0 {
			set[key] = portList(ports)
		}
	}
	if len(s.protocols) > 0 {
		set[cluster.Protocols] = protocolList(s.protocols)
	}
	return set
}

func portList(list []cluster.Ports) string {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.String()
	}
	return strings.Join(texts, ",")
}

func protocolList(declared map[uint16]mesh.Protocol) string {
	texts := make([]string, 0, len(declared))
	for _, port := range slices.Sorted(maps.Keys(declared)) {
		texts = append(texts, fmt.Sprintf("%d=%s", port, declared[port]))
	}
	return strings.Join(texts, ",")
}

// entries adds what is new to a map of strings that may not be there yet.
func entries(path string, have, want map[string]string) []Operation {
	if have == nil {
		return []Operation{{Op: "add", Path: path, Value: want}}
	}
	var patch []Operation
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if value, ok := have[key]; !ok || value != want[key] {
			patch = append(patch, Operation{Op: "add", Path: path + "/" + escape(key), Value: want[key]})
		}
	}
	return patch
}

// escape makes a key part of a JSON pointer (RFC 6901 section 3).
func escape(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}

func pointer(list string, i int) string { return list + "/" + strconv.Itoa(i) }

func trimDash(s string) string { return strings.TrimRight(s, "-.") }
