package kube

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/cmd/tulle/check"
	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/kube/chart"
	"github.com/tulle-mesh/tulle/mesh"
	names "github.com/tulle-mesh/tulle/mesh/cluster"
)

// step is a group of checks; what comes after one that has failed is skipped.
type step struct {
	name string
	do   func(*cluster, context.Context) []check.Result
}

var (
	before = []step{{"cluster", (*cluster).checkAPI}, {"rights", (*cluster).checkRights}, {"nodes", (*cluster).checkRuntimes}}
	after  = []step{
		{"cluster", (*cluster).checkAPI}, {"control plane", (*cluster).checkControl}, {"identity", (*cluster).checkIdentity},
		{"injector", (*cluster).checkInjector}, {"nodes", (*cluster).checkNodes}, {"namespaces", (*cluster).checkNamespaces},
	}
)

// Check looks at the cluster that is meant: whether the mesh works there, or
// (pre) whether it could be installed.
func Check(ctx context.Context, env *command.Env, t Target, pre bool) ([]check.Result, error) {
	c, err := t.connect(env)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return c.check(ctx, pre), nil
}

// startTime is how long a pod's proxy may take before it is worth a word.
const startTime = 30 * time.Second

// checkTimeout bounds all checks together.
const checkTimeout = time.Minute

// check looks at the cluster, before the installation or after it.
func (c *cluster) check(ctx context.Context, pre bool) []check.Result {
	steps := after
	if pre {
		steps = before
	}
	var all []check.Result
	broken := ""
	for _, s := range steps {
		results := []check.Result{{Check: "not looked at", Verdict: check.Skipped, Detail: "mend the " + broken + " first"}}
		if broken == "" {
			results = s.do(c, ctx)
		}
		for _, r := range results {
			r.Group = s.name
			all = append(all, r)
			if r.Verdict == check.Failed && (s.name == "cluster" || s.name == "control plane") {
				broken = s.name
			}
		}
	}
	return all
}

// failed is what has gone wrong, and what to do about it: the error may say that
// itself.
func failed(what string, err error, fix string) []check.Result {
	r := check.Result{Check: what, Verdict: check.Failed, Detail: err.Error(), Fix: fix}
	if hint, ok := errors.AsType[*command.Hint](err); ok && fix == "" {
		r.Detail, r.Fix = strings.TrimSuffix(err.Error(), "; "+hint.Next), hint.Next
	}
	return []check.Result{r}
}

func ok(what, format string, args ...any) check.Result {
	return check.Result{Check: what, Verdict: check.OK, Detail: fmt.Sprintf(format, args...)}
}

func (c *cluster) checkAPI(context.Context) []check.Result {
	v, err := c.version()
	if err != nil {
		return failed("API server", err, "")
	}
	r := ok("API server", "%s, Kubernetes %s", c.name, v)
	if v.LessThan(sidecars) {
		r.Verdict, r.Fix = check.Warning, "it will do; but proxies are containers like others there, and Jobs get none, until the cluster runs "+sidecars.String()
	}
	return []check.Result{r}
}

func (c *cluster) checkRights(ctx context.Context) []check.Result {
	var w wish
	objects, err := w.objects(strings.NewReader(""))
	if err == nil {
		err = c.missingRights(ctx, objects)
	}
	if err != nil {
		return failed("to install", err, "")
	}
	return []check.Result{ok("to install", "all that it takes")}
}

func (c *cluster) checkControl(ctx context.Context) []check.Result {
	w, err := c.read(ctx, workload{kind: "deployment", namespace: names.Namespace, name: names.Control})
	if apierrors.IsNotFound(err) {
		return failed("replicas", fmt.Errorf("there is none"), "type: tulle install")
	}
	if err != nil {
		return failed("replicas", c.explain(err), "")
	}
	r := ok("replicas", "%d of %d ready", w.ready, w.wanted)
	switch {
	case w.ready == 0 && w.wanted > 0:
		r.Verdict, r.Fix = check.Failed, "look with: kubectl -n "+names.Namespace+" logs deployment/"+names.Control
		if trouble := c.trouble(ctx, w); trouble != "" {
			r.Detail += "; " + trouble
		}
	case !w.done():
		r.Verdict, r.Fix = check.Warning, "wait, or look with: kubectl -n "+names.Namespace+" describe deployment/"+names.Control
	}
	return []check.Result{r, c.checkVersion(ctx)}
}

func (c *cluster) checkVersion(ctx context.Context) check.Result {
	there, err := c.installed(ctx)
	version, verr := chart.Version()
	if err := errors.Join(err, verr); err != nil || there == nil {
		return check.Result{Check: "version", Verdict: check.Failed, Detail: fmt.Sprint(err)}
	}
	r := ok("version", "%s", there.version)
	if there.version != version {
		r.Verdict, r.Detail, r.Fix = check.Warning, fmt.Sprintf("%s, and this is %s", there.version, version), "type: tulle upgrade"
	}
	return r
}

// checkIdentity looks at the roots as pods see them: the key is nobody's
// business, and not everybody may read it.
func (c *cluster) checkIdentity(ctx context.Context) []check.Result {
	secret, err := c.client.CoreV1().Secrets(names.Namespace).Get(ctx, names.CASecret, metav1.GetOptions{})
	if apierrors.IsForbidden(err) {
		return []check.Result{{Check: "authority", Verdict: check.Skipped, Detail: "you may not read secret " + names.CASecret}}
	}
	if apierrors.IsNotFound(err) {
		return failed("authority", fmt.Errorf("secret %s is gone; certificates are signed until the control plane restarts", names.CASecret),
			fmt.Sprintf("bring it back; or have another authority made: kubectl -n %s rollout restart deployment/%s, and then replace all pods of the mesh: tulle mesh --all-workloads-of NAMESPACE",
				names.Namespace, names.Control))
	}
	if err != nil {
		return failed("authority", c.explain(err), "")
	}
	block, _ := pem.Decode(secret.Data[corev1.TLSCertKey])
	if block == nil {
		return failed("authority", fmt.Errorf("secret %s has no certificate in %s", names.CASecret, corev1.TLSCertKey), "see cert-manager, or delete the secret to get a new authority")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return failed("authority", err, "see cert-manager, or delete the secret to get a new authority")
	}
	left := time.Until(cert.NotAfter)
	r := ok("authority", "good until %s", cert.NotAfter.Format("2006-01-02"))
	switch {
	case left <= 0:
		r.Verdict, r.Fix = check.Failed, "bring a new one in secret "+names.CASecret
	case left < 30*24*time.Hour:
		r.Verdict, r.Fix = check.Warning, "bring a new one in secret "+names.CASecret
	}
	return []check.Result{r}
}

func (c *cluster) checkInjector(ctx context.Context) []check.Result {
	w, err := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, names.Injector, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return failed("webhook", fmt.Errorf("it is gone: pods start without a proxy, in meshed namespaces, too"), "type: tulle upgrade, which brings it back")
	}
	if err != nil {
		return failed("webhook", c.explain(err), "")
	}
	for _, hook := range w.Webhooks {
		if hook.Name == names.WebhookName && len(hook.ClientConfig.CABundle) > 0 {
			return []check.Result{ok("webhook", "%s, its certificate is known to the API server", hook.Name)}
		}
	}
	return failed("webhook", fmt.Errorf("it has no caBundle yet, so the API server cannot trust it"), "the control plane writes it; see its log")
}

// annotating are the container runtimes that hand a pod's annotations on to CNI
// plugins, as what tells a meshed pod from others.
var annotating = []string{"containerd", "cri-o"}

func (c *cluster) checkRuntimes(ctx context.Context) []check.Result {
	nodes, err := c.client.CoreV1().Nodes().List(ctx, everything)
	if err != nil {
		return failed("runtimes", c.explain(err), "")
	}
	return []check.Result{runtimes(nodes.Items)}
}

func runtimes(nodes []corev1.Node) check.Result {
	count := map[string]int{}
	for _, n := range nodes {
		name, _, _ := strings.Cut(n.Status.NodeInfo.ContainerRuntimeVersion, "://")
		count[name]++
	}
	r := check.Result{Check: "runtimes", Verdict: check.OK}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(count)) {
		all = append(all, fmt.Sprintf("%s on %d", name, count[name]))
		if !slices.Contains(annotating, name) {
			r.Verdict, r.Fix = check.Warning, "it may not hand pods' annotations on to CNI plugins, and then no meshed pod starts there; type: tulle install --no-cni"
		}
	}
	r.Detail = strings.Join(all, ", ") + " of the nodes"
	return r
}

func (c *cluster) checkNodes(ctx context.Context) []check.Result {
	nodes, err := c.client.CoreV1().Nodes().List(ctx, everything)
	if err != nil {
		return failed("agents", c.explain(err), "")
	}
	w, err := c.read(ctx, workload{kind: "daemonset", namespace: names.Namespace, name: names.CNI})
	if apierrors.IsNotFound(err) {
		return c.checkNoAgents(ctx)
	}
	if err != nil {
		return failed("agents", c.explain(err), "")
	}
	r := ok("agents", "%d of %d ready, on %d nodes", w.ready, w.wanted, len(nodes.Items))
	if !w.done() {
		r.Verdict, r.Fix = check.Failed, "until then meshed pods do not start there; look with: kubectl -n "+names.Namespace+" describe daemonset/"+names.CNI
		if trouble := c.trouble(ctx, w); trouble != "" {
			r.Detail += "; " + trouble
		}
	}
	return []check.Result{r, runtimes(nodes.Items)}
}

// checkNoAgents: they are not needed where the control plane has init containers
// redirect, and only there.
func (c *cluster) checkNoAgents(ctx context.Context) []check.Result {
	w, err := c.read(ctx, workload{kind: "deployment", namespace: names.Namespace, name: names.Control})
	if err != nil {
		return failed("agents", c.explain(err), "")
	}
	for _, container := range w.template.Spec.Containers {
		if slices.Contains(container.Args, "-cni=false") {
			return []check.Result{ok("agents", "none: pods are redirected by init containers")}
		}
	}
	return failed("agents", fmt.Errorf("daemonset %s is gone: meshed pods do not start any more", names.CNI), "type: tulle upgrade, which brings it back")
}

func (c *cluster) checkNamespaces(ctx context.Context) []check.Result {
	list, err := c.client.CoreV1().Namespaces().List(ctx, everything)
	if err != nil {
		return failed("meshed", c.explain(err), "")
	}
	var results []check.Result
	for _, n := range list.Items {
		if n.Labels[names.Inject] == names.Enabled {
			results = append(results, c.checkNamespace(ctx, &n))
		}
	}
	if len(results) == 0 {
		return []check.Result{{Check: "meshed", Verdict: check.OK, Detail: "none yet", Fix: "take one in with: tulle mesh NAMESPACE"}}
	}
	return results
}

func (c *cluster) checkNamespace(ctx context.Context, n *corev1.Namespace) check.Result {
	pods, err := c.pods(ctx, n.Name)
	if err != nil {
		return failed(n.Name, err, "")[0]
	}
	var meshed, ready, without int
	var waiting *corev1.Pod
	elsewhere := ""
	for _, p := range pods {
		elsewhere = cmp.Or(elsewhere, outside(p))
		switch {
		case hasProxy(p) && proxyReady(p):
			meshed++
			ready++
		case hasProxy(p):
			meshed++
			if time.Since(p.CreationTimestamp.Time) > startTime {
				waiting = p
			}
		case !optedOut(p) && p.Status.Phase == corev1.PodRunning:
			without++
		}
	}
	policy, said := n.Annotations[names.Policy]
	if !said {
		policy = names.Permissive
	}
	r := ok(n.Name, "%s, %d pods with a proxy, %d of them ready", policy, meshed, ready)
	if policy != names.Permissive && policy != names.Strict {
		r.Verdict, r.Fix = check.Warning, fmt.Sprintf("kubectl annotate --overwrite namespace %s %s=%s (or %s)", n.Name, names.Policy, names.Strict, names.Permissive)
		r.Detail = fmt.Sprintf("the policy %q is unknown, and taken for %s; %d pods with a proxy, %d of them ready", policy, names.Strict, meshed, ready)
	}
	if waiting != nil {
		r.Verdict, r.Fix = check.Warning, fmt.Sprintf("see why with: kubectl -n %s logs %s -c %s", n.Name, waiting.Name, names.ProxyContainer)
	}
	if without > 0 {
		r.Verdict, r.Fix = check.Warning, "give them one with: tulle mesh "+n.Name
		r.Detail += fmt.Sprintf(", %d without", without)
	}
	if elsewhere != "" {
		r.Verdict, r.Fix = check.Warning, "tulle upgrade --set networks=PREFIX,PREFIX with all that pods and services have, then tulle mesh --all-workloads-of "+n.Name
		r.Detail += fmt.Sprintf(", one at %s, which proxies take for outside: what they send to pods there is plaintext", elsewhere)
	}
	return r
}

// outside returns an address of a pod that its own proxy takes for one outside the
// cluster, "" if there is none.
func outside(p *corev1.Pod) string {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for _, arg := range c.Args {
			list, ok := strings.CutPrefix(arg, "-networks=")
			if !ok || c.Name != names.ProxyContainer {
				continue
			}
			networks, err := mesh.ParseNetworks(list)
			for _, ip := range p.Status.PodIPs {
				addr, bad := netip.ParseAddr(ip.IP)
				if err == nil && bad == nil && !slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr.Unmap()) }) {
					return ip.IP
				}
			}
		}
	}
	return ""
}

// proxyReady tells whether a pod's proxy serves, as its startup probe says.
func proxyReady(p *corev1.Pod) bool {
	for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if s.Name == names.ProxyContainer {
			return s.Started != nil && *s.Started && s.Ready
		}
	}
	return false
}
