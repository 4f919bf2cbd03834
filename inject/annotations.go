package inject

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// maxSkipped bounds how many ports may be skipped in one direction, ranges
// counted in full: the kernel looks each one up.
const maxSkipped = 1024

// settings are what a pod asks for.
type settings struct {
	disabled                  bool
	skipInbound, skipOutbound []cluster.Ports
	opaque                    []cluster.Ports
	protocols                 map[uint16]mesh.Protocol
	logLevel                  string
	resources                 Resources
}

// annotation is a row of the table.
type annotation struct {
	key string
	set func(s *settings, value string) error
	// ofPod: it may stand on a pod only, not on a namespace as a default.
	ofPod bool
}

// row makes an annotation of how its value is read and of what it changes.
func row[T any](key string, parse func(string) (T, error), apply func(*settings, T)) annotation {
	return annotation{key: key, set: func(s *settings, value string) error {
		v, err := parse(value)
		if err != nil {
			return err
		}
		apply(s, v)
		return nil
	}}
}

func podRow[T any](key string, parse func(string) (T, error), apply func(*settings, T)) annotation {
	a := row(key, parse, apply)
	a.ofPod = true
	return a
}

// annotations are all that a user may ask for.
var annotations = []annotation{
	podRow(cluster.Inject, parseInject, func(s *settings, on bool) { s.disabled = !on }),
	row(cluster.SkipInboundPorts, parseSkip, func(s *settings, p []cluster.Ports) { s.skipInbound = join(s.skipInbound, p) }),
	row(cluster.SkipOutboundPorts, parseSkip, func(s *settings, p []cluster.Ports) { s.skipOutbound = join(s.skipOutbound, p) }),
	row(cluster.OpaquePorts, cluster.ParsePorts, func(s *settings, p []cluster.Ports) { s.opaque = join(s.opaque, p) }),
	row(cluster.Protocols, cluster.ParseProtocols, func(s *settings, p map[uint16]mesh.Protocol) { s.protocols = p }),
	row(cluster.LogLevel, parseLevel, func(s *settings, l string) { s.logLevel = l }),
	row(cluster.CPURequest, parseCPU, func(s *settings, q string) { s.resources.CPURequest = q }),
	row(cluster.CPULimit, parseCPU, func(s *settings, q string) { s.resources.CPULimit = q }),
	row(cluster.MemoryRequest, parseMemory, func(s *settings, q string) { s.resources.MemoryRequest = q }),
	row(cluster.MemoryLimit, parseMemory, func(s *settings, q string) { s.resources.MemoryLimit = q }),
}

// ours are annotations that we write, and that a copied pod may bring along.
var ours = []string{cluster.InjectedAnnotation, cluster.RedirectAnnotation}

func find(key string) *annotation {
	for i := range annotations {
		if annotations[i].key == key {
			return &annotations[i]
		}
	}
	return nil
}

// set applies one annotation.
func (s *settings) set(key, value string) error {
	a := find(key)
	if a == nil {
		return fmt.Errorf("annotation %s: unknown; known are %s", key, strings.Join(knownKeys(), ", "))
	}
	if err := a.set(s, value); err != nil {
		return fmt.Errorf("annotation %s: %w", key, err)
	}
	return nil
}

func knownKeys() []string {
	keys := make([]string, 0, len(annotations))
	for _, a := range annotations {
		keys = append(keys, a.key)
	}
	return keys
}

// readNamespace applies the defaults that a namespace has for its pods. Keys
// that are not for pods are somebody else's to check.
func (s *settings) readNamespace(on map[string]string) error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(on)) {
		if a := find(key); a != nil && !a.ofPod {
			if err := s.set(key, on[key]); err != nil {
				errs = append(errs, fmt.Errorf("of the namespace: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// readPod applies a pod's annotations.
func (s *settings) readPod(on map[string]string) error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(on)) {
		switch {
		case !strings.HasPrefix(key, cluster.Prefix) || slices.Contains(ours, key):
		case key == cluster.Policy:
			errs = append(errs, fmt.Errorf("annotation %s: belongs on the namespace, not on a pod", key))
		default:
			errs = append(errs, s.set(key, on[key]))
		}
	}
	return errors.Join(append(errs, s.check())...)
}

// check reports what is wrong with the settings as a whole, and evens out what
// a default and an annotation say.
func (s *settings) check() error {
	var errs []error
	for _, list := range []struct {
		key   string
		ports []cluster.Ports
	}{{cluster.SkipInboundPorts, s.skipInbound}, {cluster.SkipOutboundPorts, s.skipOutbound}} {
		if n := count(list.ports); n > maxSkipped {
			errs = append(errs, fmt.Errorf("annotation %s: %d ports in all, at most %d can be skipped; to leave the pod out, set %s: %s",
				list.key, n, maxSkipped, cluster.Inject, cluster.Disabled))
		}
	}
	r := &s.resources
	errs = append(errs, atMost(cluster.CPURequest, &r.CPURequest, defaultResources.CPURequest, cluster.CPULimit, r.CPULimit),
		atMost(cluster.MemoryRequest, &r.MemoryRequest, defaultResources.MemoryRequest, cluster.MemoryLimit, r.MemoryLimit))
	return errors.Join(errs...)
}

// atMost reports a request above its limit; one that nobody asked for is lowered.
func atMost(key string, request *string, standard, limitKey, limit string) error {
	if limit == "" || quantity(*request) <= quantity(limit) {
		return nil
	}
	if *request == standard {
		*request = limit
		return nil
	}
	return fmt.Errorf("annotation %s: %s is above %s, which is %s", key, *request, limitKey, limit)
}

func count(list []cluster.Ports) (n int) {
	for _, p := range list {
		n += int(p.Last) - int(p.First) + 1
	}
	return n
}

// join returns both lists in order, each entry once.
func join(a, b []cluster.Ports) []cluster.Ports {
	all := slices.Concat(a, b)
	slices.SortFunc(all, func(x, y cluster.Ports) int {
		return cmp.Or(cmp.Compare(x.First, y.First), cmp.Compare(x.Last, y.Last))
	})
	return slices.Compact(all)
}

func parseInject(value string) (bool, error) {
	switch value {
	case cluster.Enabled:
		return true, nil
	case cluster.Disabled:
		return false, nil
	}
	return false, fmt.Errorf("%q: must be %s or %s", value, cluster.Enabled, cluster.Disabled)
}

func parseSkip(value string) ([]cluster.Ports, error) {
	ports, err := cluster.ParsePorts(value)
	if err != nil {
		return nil, err
	}
	if n := count(ports); n > maxSkipped {
		return nil, fmt.Errorf("lists %d ports, at most %d can be skipped", n, maxSkipped)
	}
	return ports, nil
}

func parseLevel(value string) (string, error) {
	if _, ok := logLevels[value]; !ok {
		return "", fmt.Errorf("%q: must be debug, info, warn or error", value)
	}
	return value, nil
}

var (
	cpuForm    = regexp.MustCompile(`^(?:[0-9]{1,6}m|[0-9]{1,4}(?:\.[0-9]{1,3})?)$`)
	memoryForm = regexp.MustCompile(`^[0-9]{1,12}(?:[kMG]|[KMG]i)?$`)
)

func parseCPU(value string) (string, error) {
	if !cpuForm.MatchString(value) || quantity(value) == 0 {
		return "", fmt.Errorf("%q: must be an amount of CPU, such as 100m or 0.5", value)
	}
	return value, nil
}

func parseMemory(value string) (string, error) {
	if !memoryForm.MatchString(value) || quantity(value) == 0 {
		return "", fmt.Errorf("%q: must be an amount of memory, such as 32Mi or 1G", value)
	}
	return value, nil
}

var units = map[string]float64{
	"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30,
}

// quantity returns the number that a checked quantity stands for.
func quantity(s string) float64 {
	digits := strings.TrimRight(s, "kmMGKi")
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0
	}
	return n * units[s[len(digits):]]
}
