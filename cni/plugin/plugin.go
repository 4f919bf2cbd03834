// Package plugin is the CNI plugin that stands last in a node's chain of
// plugins, and has the node's agent redirect the traffic of meshed pods.
//
// It makes no interface and gives no address: on ADD it passes on the result
// of the plugins before it. Pods without a proxy it lets by without asking
// anybody, so that nothing but the mesh depends on the mesh. It calls no API
// server: which pods are meshed it reads from their annotations, which the
// runtime adds to its input (containerd 1.6 and newer).
//
// See the CNI specification, version 1.1.0:
// https://github.com/containernetworking/cni/blob/main/SPEC.md
package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"

	"github.com/tulle-mesh/tulle/cni/agent"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// Name is the plugin's type in a configuration, and its file name.
const Name = "tulle-cni"

// Annotations is the capability with which a runtime passes on a pod's
// annotations.
const Annotations = "io.kubernetes.cri.pod-annotations"

// maxInput bounds the configuration, in bytes: it holds the pod's annotations
// and all that the plugins before have found.
const maxInput = 4 << 20

// versions of the CNI specification that we can be spoken to in.
var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Error codes of the specification, section "Error".
const (
	codeVersion = 1  // incompatible version
	codeConfig  = 7  // invalid network configuration
	codeEnv     = 4  // invalid environment variables
	codeDecode  = 6  // cannot decode
	codeLater   = 11 // try again later
)

// Call is one invocation, as the runtime makes it.
type Call struct {
	Command string // CNI_COMMAND
	Netns   string // CNI_NETNS
	Args    string // CNI_ARGS, KEY=VALUE;KEY=VALUE
	Stdin   io.Reader
	Stdout  io.Writer
}

// failure is an error as the specification wants it.
type failure struct {
	Version string `json:"cniVersion"`
	Code    int    `json:"code"`
	Msg     string `json:"msg"`
}

func (f *failure) Error() string { return f.Msg }

func fail(code int, format string, args ...any) error {
	return &failure{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// input is what we read of the configuration.
type input struct {
	Version string                     `json:"cniVersion"`
	Socket  string                     `json:"socket"` // the agent's
	Runtime map[string]json.RawMessage `json:"runtimeConfig"`
	// Result of the plugins before, as it came.
	PrevResult json.RawMessage `json:"prevResult"`
}

// Run does what the call asks, and returns the exit code.
func Run(ctx context.Context, c Call) int {
	in, err := read(c.Stdin)
	if err == nil {
		err = c.do(ctx, in)
	}
	if err == nil {
		return 0
	}
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{Code: codeLater, Msg: err.Error()}
	}
	f.Version = in.Version
	if f.Version == "" {
		f.Version = versions[len(versions)-1]
	}
	_ = json.NewEncoder(c.Stdout).Encode(f)
	return 1
}

func read(r io.Reader) (input, error) {
	var in input
	raw, err := io.ReadAll(io.LimitReader(r, maxInput+1))
	if err != nil {
		return in, err
	}
	if len(raw) > maxInput {
		return in, fail(codeDecode, "the configuration has more than %d bytes", maxInput)
	}
	if len(bytes.TrimSpace(raw)) == 0 { // VERSION may come without
		return in, nil
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return in, fail(codeDecode, "the configuration: %v", err)
	}
	return in, nil
}

func (c Call) do(ctx context.Context, in input) error {
	switch c.Command {
	case "VERSION":
		return json.NewEncoder(c.Stdout).Encode(map[string]any{"cniVersion": versions[len(versions)-1], "supportedVersions": versions})
	case "ADD":
		return c.add(ctx, in)
	case "DEL", "CHECK", "GC", "STATUS":
		// What was made for a pod ends with its network namespace, and not
		// before: a process that is still there must not pass in plaintext.
		return nil
	}
	return fail(codeEnv, "CNI_COMMAND %q: must be ADD, DEL, CHECK, GC, STATUS or VERSION", c.Command)
}

func (c Call) add(ctx context.Context, in input) error {
	if len(in.PrevResult) == 0 {
		return fail(codeConfig, "%s makes no interface: it must come after a plugin that does", Name)
	}
	annotations, err := in.annotations()
	if err != nil {
		return err
	}
	if agent.Meshed(annotations) {
		if err := c.ask(ctx, in.Socket, annotations); err != nil {
			return fail(codeLater, "the pod is meshed, and its traffic cannot be redirected: %v", err)
		}
	}
	_, err = c.Stdout.Write(in.PrevResult)
	return err
}

func (c Call) ask(ctx context.Context, socket string, annotations map[string]string) error {
	netns, err := os.Open(c.Netns)
	if err != nil {
		return err
	}
	defer netns.Close()
	return agent.Ask(ctx, socket, agent.Request{Command: agent.Add, Pod: c.pod(), Annotations: annotations}, netns)
}

// annotations returns those of the pod that are ours.
func (in input) annotations() (map[string]string, error) {
	raw, given := in.Runtime[Annotations]
	if !given {
		return nil, nil
	}
	var all map[string]string
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fail(codeDecode, "runtimeConfig %s: %v", Annotations, err)
	}
	maps.DeleteFunc(all, func(key, _ string) bool { return !strings.HasPrefix(key, cluster.Prefix) })
	return all, nil
}

// pod is NAMESPACE/NAME.
func (c Call) pod() string {
	var namespace, name string
	for arg := range strings.SplitSeq(c.Args, ";") {
		switch key, value, _ := strings.Cut(arg, "="); key {
		case "K8S_POD_NAMESPACE":
			namespace = value
		case "K8S_POD_NAME":
			name = value
		}
	}
	return namespace + "/" + name
}
