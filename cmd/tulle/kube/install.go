package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/cmd/tulle/check"
	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/kube/chart"
	names "github.com/tulle-mesh/tulle/mesh/cluster"
)

const installAbout = `
Installs the mesh, or makes an installation of this version be as the flags say,
waits until it runs, and checks it. Nothing is meshed by that: see tulle mesh.`

// versionLabel is on what is installed.
const versionLabel = "app.kubernetes.io/version"

// valuesNote is on the control plane's Deployment: what was asked for when it
// was installed, so that an upgrade keeps to it.
const valuesNote = "tulle.dev/values"

// wish is what the user asks to have installed.
type wish struct {
	before   chart.Values // what the cluster has; nil: the chart's defaults
	sets     command.List
	files    command.List
	ha       bool
	noCNI    bool
	autoMesh string
}

func (w *wish) flags(f *command.Flags) {
	f.Var(&w.sets, "set", "`KEY=VALUE` of the chart's values; may be repeated")
	f.Var(&w.files, "values", "`FILE` of values; may be repeated")
	f.Short("f", "values")
	f.BoolVar(&w.ha, "ha", false, "run three replicas of the control plane")
	f.BoolVar(&w.noCNI, "no-cni", false, "redirect by an init container in each pod instead of an agent on each node")
	f.StringVar(&w.autoMesh, "auto-mesh", "", "mesh all namespaces, present and future, that this label `SELECTOR` matches")
}

// silent tells whether no flag asks for anything.
func (w *wish) silent() bool {
	return len(w.sets)+len(w.files) == 0 && !w.ha && !w.noCNI && w.autoMesh == ""
}

// values are what all flags together ask for.
func (w *wish) values(stdin io.Reader) (chart.Values, error) {
	values, err := chart.Defaults()
	if err != nil {
		return nil, err
	}
	if err := values.Merge(w.before); err != nil {
		return nil, command.WithHint(fmt.Errorf("what the cluster was installed with: %w", err), "type: tulle install, with the values that are to hold")
	}
	for _, name := range w.files {
		content, err := readFile(stdin, name)
		if err != nil {
			return nil, err
		}
		v, err := chart.ParseValues(content)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := values.Merge(v); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	sets := w.sets
	if w.ha {
		sets = append(command.List{"control.replicas=3"}, sets...)
	}
	if w.noCNI {
		sets = append(command.List{"cni.enabled=false"}, sets...)
	}
	if w.autoMesh != "" {
		if _, err := metav1.ParseToLabelSelector(w.autoMesh); err != nil {
			return nil, command.Usagef("--auto-mesh %q: %v", w.autoMesh, err)
		}
		sets = append(command.List{"autoMesh=" + w.autoMesh}, sets...)
	}
	for _, s := range sets {
		if err := values.Set(s); err != nil {
			return nil, command.Usagef("--set %v; all values: tulle install --show-values", err)
		}
	}
	if _, err := injection(values); err != nil { // the control plane would not start
		return nil, command.Usagef("%v; all values: tulle install --show-values", err)
	}
	return values, nil
}

// objects are what is to be installed, in the order in which to do it.
func (w *wish) objects(stdin io.Reader) ([]*unstructured.Unstructured, error) {
	values, err := w.values(stdin)
	if err != nil {
		return nil, err
	}
	return render(values)
}

func render(values chart.Values) ([]*unstructured.Unstructured, error) {
	rendered, err := chart.Render(names.Namespace, values)
	if err != nil {
		return nil, err
	}
	objects, err := decode(rendered)
	if err != nil {
		return nil, fmt.Errorf("the values do not make valid objects: %w", err)
	}
	objects = append(objects, namespaceObject(names.Namespace))
	sortForApply(objects)
	return objects, nil
}

// noted are the objects, with a note of the values that made them.
func (w *wish) noted(stdin io.Reader) ([]*unstructured.Unstructured, error) {
	values, err := w.values(stdin)
	if err != nil {
		return nil, err
	}
	defaults, err := chart.Defaults()
	if err != nil {
		return nil, err
	}
	note, err := json.Marshal(values.Beside(defaults))
	if err != nil {
		return nil, err
	}
	objects, err := render(values)
	for _, o := range objects {
		if o.GetKind() == "Deployment" {
			o.SetAnnotations(map[string]string{valuesNote: string(note)})
		}
	}
	return objects, err
}

func readFile(stdin io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

func install(ctx context.Context, env *command.Env, args []string) error {
	f := command.NewFlags("install [flags]", installAbout)
	var t Target
	var w wish
	t.Flags(f)
	w.flags(f)
	show := f.Bool("print", false, "print what would be applied, and do nothing")
	showValues := f.Bool("show-values", false, "print all values that can be set, and do nothing")
	timeout := f.Duration("timeout", 5*time.Minute, "give up after this `TIME`")
	if err := f.ParseNone(env, args); err != nil {
		return err
	}
	if *showValues {
		return printValues(env.Stdout)
	}
	if *show {
		objects, err := w.objects(env.Stdin)
		if err != nil {
			return err
		}
		return printObjects(env.Stdout, objects)
	}
	objects, err := w.noted(env.Stdin)
	if err != nil {
		return err
	}
	c, err := t.connect(env)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	if err := c.mayInstall(ctx, objects); err != nil {
		return err
	}
	there, err := c.installed(ctx)
	if err != nil {
		return err
	}
	if err := c.mayChange(there); err != nil {
		return err
	}
	version, err := chart.Version()
	if err != nil {
		return err
	}
	if there != nil && there.version != version {
		return command.WithHint(fmt.Errorf("cluster %s has Tulle %s, and this is %s", c.name, there.version, version), "type: tulle upgrade")
	}
	return c.install(ctx, env, objects)
}

// mayInstall refuses where it could not work, before anything is done.
func (c *cluster) mayInstall(ctx context.Context, objects []*unstructured.Unstructured) error {
	if _, err := c.version(); err != nil {
		return err
	}
	if err := c.missingRights(ctx, objects); err != nil {
		return err
	}
	return c.refuseForeign(ctx)
}

// install applies objects, waits until they run and the proxies follow them, and
// checks them.
func (c *cluster) install(ctx context.Context, env *command.Env, objects []*unstructured.Unstructured) error {
	_, _ = fmt.Fprintf(env.Stdout, "Installing in cluster %s:\n", c.name)
	f, err := c.followers(ctx)
	if err != nil { // nobody answers whom proxies could follow
		f.lost = f.pods
	}
	var rollouts []workload
	for _, o := range objects {
		if o.GetKind() == "MutatingWebhookConfiguration" {
			// From here on meshed pods need the control plane: first let it run.
			if err := c.await(ctx, env.Stdout, rollouts); err != nil {
				return err
			}
			rollouts = nil
		}
		if err := c.apply(ctx, o); err != nil {
			return err
		}
		switch o.GetKind() {
		case "Deployment", "DaemonSet":
			rollouts = append(rollouts, workload{kind: lower(o.GetKind()), namespace: o.GetNamespace(), name: o.GetName()})
		}
	}
	if err := c.prune(ctx, env, objects); err != nil {
		return err
	}
	results := c.awaitGood(ctx)
	if !check.Good(results) {
		_ = check.Print(env.Stdout, results)
		return command.WithHint(errors.New("the mesh is installed, but does not work yet"), "look again with: tulle check")
	}
	if err := c.caughtUp(ctx, env.Stdout, f.lost); err != nil {
		return err
	}
	_, err = fmt.Fprintln(env.Stdout, "The mesh is there. Take a namespace into it with: tulle mesh NAMESPACE")
	return err
}

// goodWithin is more than it takes until all is good once everything runs.
const goodWithin = time.Minute

// awaitGood checks until all is good, but not for ever: what is not by then will not
// be by itself.
func (c *cluster) awaitGood(ctx context.Context) (results []check.Result) {
	ctx, cancel := context.WithTimeout(ctx, goodWithin)
	defer cancel()
	_ = poll(ctx, func() (bool, error) {
		r := c.check(ctx, false)
		if ctx.Err() == nil || results == nil {
			results = r
		}
		return check.Good(r), nil
	})
	return results
}

// prune removes what an installation with other values has left.
func (c *cluster) prune(ctx context.Context, env *command.Env, wanted []*unstructured.Unstructured) error {
	most := wish{ha: true}
	all, err := most.objects(strings.NewReader(""))
	if err != nil {
		return err
	}
	slices.Reverse(all) // what others need goes last
	for _, o := range all {
		if slices.ContainsFunc(wanted, func(w *unstructured.Unstructured) bool { return name(w) == name(o) }) {
			continue
		}
		if o.GetKind() == "DaemonSet" {
			if err := c.clearNodes(ctx, env); err != nil {
				return err
			}
		}
		if err := c.delete(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// installation is what the cluster has.
type installation struct {
	version string
	values  chart.Values // which differ from the defaults
	noted   bool         // false: nobody knows of any values, as it was not we who applied it
	release string       // of Helm; "": Helm has not installed it
}

// installed returns what the cluster has, nil if it has no mesh.
func (c *cluster) installed(ctx context.Context) (*installation, error) {
	d, err := c.client.AppsV1().Deployments(names.Namespace).Get(ctx, names.Control, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, c.explain(err)
	}
	note, noted := d.Annotations[valuesNote]
	values, err := chart.ParseValues([]byte(note))
	if err != nil {
		return nil, fmt.Errorf("annotation %s of deployment %s: %w", valuesNote, d.Name, err)
	}
	return &installation{d.Labels[versionLabel], values, noted, d.Annotations["meta.helm.sh/release-name"]}, nil
}

// mayChange is an error if Helm looks after the installation: it would undo
// what we do.
func (c *cluster) mayChange(i *installation) error {
	if i == nil || i.release == "" {
		return nil
	}
	return command.WithHint(fmt.Errorf("Helm has installed Tulle %s in cluster %s", i.version, c.name),
		"type: helm upgrade "+i.release+" CHART")
}

// refuseForeign leaves a webhook alone that has our name and is not ours.
func (c *cluster) refuseForeign(ctx context.Context) error {
	w, err := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, names.Injector, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return c.explain(err)
	}
	if w.Labels["app.kubernetes.io/part-of"] != "tulle" {
		return command.WithHint(fmt.Errorf("the cluster has a webhook %s that is not Tulle's", names.Injector),
			"if nobody needs it: kubectl delete mutatingwebhookconfiguration "+names.Injector)
	}
	return nil
}

func upgrade(ctx context.Context, env *command.Env, args []string) error {
	f := command.NewFlags("upgrade [flags]", `
Brings the control plane and the agents of the cluster to this version, one
after the other, under load, and waits until the proxies follow the new control
plane. What was set at the installation stays so, save for what the flags say.
Proxies keep their version until their pods are replaced:
tulle mesh NAMESPACE does that.`)
	var t Target
	var w wish
	t.Flags(f)
	w.flags(f)
	timeout := f.Duration("timeout", 5*time.Minute, "give up after this `TIME`")
	if err := f.ParseNone(env, args); err != nil {
		return err
	}
	c, err := t.connect(env)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	there, err := c.installed(ctx)
	if err != nil {
		return err
	}
	if there == nil {
		return notInstalled(c)
	}
	if err := c.mayChange(there); err != nil {
		return err
	}
	if !there.noted && w.silent() {
		return command.WithHint(fmt.Errorf("nothing tells with which values Tulle %s was installed in cluster %s", there.version, c.name),
			"say which are to hold: tulle upgrade -f VALUES (/dev/null: the defaults)")
	}
	w.before = there.values
	objects, err := w.noted(env.Stdin)
	if err != nil {
		return err
	}
	if err := c.mayInstall(ctx, objects); err != nil {
		return err
	}
	return c.install(ctx, env, objects)
}

func notInstalled(c *cluster) error {
	return command.WithHint(fmt.Errorf("cluster %s has no mesh", c.name), "type: tulle install")
}

func printValues(out io.Writer) error {
	values, err := chart.Defaults()
	if err != nil {
		return err
	}
	content, err := yaml.Marshal(values)
	if err == nil {
		_, err = out.Write(content)
	}
	return err
}

func printObjects(out io.Writer, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		raw, err := json.Marshal(o)
		if err != nil {
			return err
		}
		content, err := yaml.JSONToYAML(raw)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "---\n%s", content); err != nil {
			return err
		}
	}
	return nil
}
