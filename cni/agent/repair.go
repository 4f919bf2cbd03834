package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tulle-mesh/tulle/cni/redirect"
)

// maxResult bounds a cached result, in bytes: it holds the pod's annotations
// and the network configuration.
const maxResult = 4 << 20

// cached is what libcni keeps of each successful ADD, in a file of its own
// (github.com/containernetworking/cni, libcni/api.go, cachedInfo).
type cached struct {
	Kind           string `json:"kind"`
	IfName         string `json:"ifName"`
	CniArgs        [][2]string
	CapabilityArgs struct {
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"capabilityArgs"`
	Result struct {
		Interfaces []struct {
			Name    string `json:"name"`
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
	} `json:"result"`
}

// Repair redirects the traffic of all meshed pods that run on this node, those
// that are already with the backend that they have. It goes on where one pod
// cannot be repaired, and returns what went wrong.
func (a *Agent) Repair() error {
	names, err := filepath.Glob(filepath.Join(a.config.Results, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		pod, err := readResult(name)
		if err != nil {
			a.config.Log.Warn("a cached result that is not understood", "file", name, "error", err)
			continue
		}
		if !Meshed(pod.CapabilityArgs.Annotations) {
			continue
		}
		if err := a.repair(pod); err != nil {
			errs = append(errs, fmt.Errorf("pod %s: %w", pod.name(), err))
		}
	}
	return errors.Join(errs...)
}

func readResult(name string) (cached, error) {
	var c cached
	info, err := os.Stat(name)
	if err != nil {
		return c, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxResult {
		return c, fmt.Errorf("not a file of at most %d bytes", maxResult)
	}
	content, err := os.ReadFile(name)
	if err != nil {
		return c, err
	}
	return parseResult(content)
}

func parseResult(content []byte) (cached, error) {
	var c cached
	if err := json.Unmarshal(content, &c); err != nil {
		return c, err
	}
	if c.Kind != "cniCacheV1" {
		return c, fmt.Errorf("kind %q", c.Kind)
	}
	return c, nil
}

func (a *Agent) repair(pod cached) error {
	path := pod.namespace()
	if path == "" {
		return errors.New("its result names no network namespace")
	}
	netns, err := os.Open(filepath.Join(a.config.Run, path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a result that outlived its pod
	}
	if err != nil {
		return err
	}
	defer netns.Close()
	err = a.redirect(pod.name(), pod.CapabilityArgs.Annotations, netns, true)
	if errors.Is(err, redirect.ErrNewer) {
		return nil // it is redirected, by a later version, which knows better
	}
	return err
}

// namespace returns the path of the pod's network namespace below /run, "" if
// it is not known or elsewhere.
func (c cached) namespace() string {
	for _, i := range c.Result.Interfaces {
		if i.Name != c.IfName || i.Sandbox == "" {
			continue
		}
		path := strings.TrimPrefix(filepath.Clean(i.Sandbox), "/var")
		if below, ok := strings.CutPrefix(path, "/run/"); ok {
			return below
		}
	}
	return ""
}

// name is NAMESPACE/NAME.
func (c cached) name() string {
	arg := map[string]string{}
	for _, kv := range c.CniArgs {
		arg[kv[0]] = kv[1]
	}
	return arg["K8S_POD_NAMESPACE"] + "/" + arg["K8S_POD_NAME"]
}
