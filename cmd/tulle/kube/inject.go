package kube

import (
	"context"
	"errors"
	"fmt"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/kube/chart"
	"github.com/tulle-mesh/tulle/inject"
	"github.com/tulle-mesh/tulle/mesh"
	names "github.com/tulle-mesh/tulle/mesh/cluster"
)

// injectFile is `tulle inject`.
func injectFile(_ context.Context, env *command.Env, args []string) error {
	f := command.NewFlags("inject -f FILE [flags]", `
Prints the objects of a file with the proxy added to each pod, just as the mesh
would do when the pod starts. Talks to no cluster. What is no pod passes as is.`)
	var w wish
	file := f.String("file", "", "`FILE` of objects, - for the standard input")
	f.Short("f", "file")
	f.Var(&w.sets, "set", "`KEY=VALUE` of the chart's values, as for tulle install")
	f.BoolVar(&w.noCNI, "no-cni", false, "redirect by an init container")
	native := f.Bool("native-sidecar", true, "false: for Kubernetes before "+sidecars.String()+", where the proxy is a container like others")
	operands, err := f.Parse(env, args)
	switch {
	case err != nil:
		return err
	case *file == "" && len(operands) == 1:
		*file = operands[0]
	case *file == "" || len(operands) > 0:
		return command.Usagef("which file? tulle inject -f FILE")
	}
	values, err := w.values(env.Stdin)
	if err != nil {
		return err
	}
	config, err := injection(values)
	if err != nil {
		return err
	}
	config.Native = *native
	stream, err := readFile(env.Stdin, *file)
	if err != nil {
		return err
	}
	out, done, err := config.Manifest(stream)
	if err != nil {
		return fmt.Errorf("%s: %w", *file, err)
	}
	for _, d := range done {
		for _, warning := range d.Warnings {
			_, _ = fmt.Fprintf(env.Stderr, "%s %s: %s\n", d.Kind, d.Name, warning)
		}
	}
	if len(done) == 0 {
		_, _ = fmt.Fprintf(env.Stderr, "%s has no pods, and passes as it is\n", *file)
	}
	_, err = env.Stdout.Write(out)
	return err
}

// injection is what the control plane of an installation with these values
// adds to pods.
func injection(v chart.Values) (inject.Config, error) {
	version, err := chart.Version()
	if err != nil {
		return inject.Config{}, err
	}
	tag, _ := v["tag"].(string)
	if tag == "" {
		tag = version
	}
	cni, _ := v["cni"].(map[string]any)
	registry, ok1 := v["registry"].(string)
	pull, ok2 := v["pullPolicy"].(string)
	domain, ok3 := v["trustDomain"].(string)
	enabled, ok4 := cni["enabled"].(bool)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return inject.Config{}, errors.New("registry, pullPolicy, trustDomain and cni.enabled must have values")
	}
	within, _ := v["networks"].(string)
	networks, err := mesh.ParseNetworks(within)
	if err != nil {
		return inject.Config{}, fmt.Errorf("networks: %w", err)
	}
	c := inject.Config{
		Image:     registry + "/proxy:" + tag,
		InitImage: registry + "/cni:" + tag, PullPolicy: pull, Version: version, TrustDomain: domain,
		Control: fmt.Sprintf("%s:%d", names.ControlHost, mesh.ControlPort),
		CNI:     enabled, Native: true, Networks: networks,
	}
	return c, c.Validate()
}
