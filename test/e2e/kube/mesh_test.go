package kube

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// scenario is a step of the story.
type scenario struct {
	name string
	run  func(*testing.T)
}

// beside are scenarios in namespaces of their own, which mostly wait.
var beside = []scenario{
	{"dual stack", dualStack}, // the longest come first, so that none is waited for alone
	{"traffic", traffic},
	{"policies", policies},
	{"nearby", nearby},
	{"offline", offline},
	{"strict", strict},
	{"views", views},
	{"redirects", redirected},
	{"nodes", nodes},
	{"rolling restart", rollingRestart},
	{"jobs", jobs},
	{"addresses", addresses},
	{"offline, init container", offlineInit},
	{"auto-mesh", autoMesh},
	{"why", explained},
	{"injection", injection},
	{"forgery", forgery},
	{"restricted", restricted},
}

// alone are those that change the mesh itself, or measure it.
var alone = []scenario{
	{"control plane away", controlAway},
	{"control plane replaced", controlReplaced},
	{"injector away", injectorAway},
	{"agent away", agentAway},
	{"agent killed", agentKilled},
	{"network rewritten", networkRewritten},
	{"pods gone", collected},
	{"power cut", powerCut},
	{"another authority", anotherAuthority},
	{"three replicas", threeReplicas},
	{"no plugin", noPlugin},
	{"old sidecar", oldSidecar},
	{"another's bundle", otherBundle},
}

// TestKubernetes tells the story of a cluster: no mesh, an old one, an upgrade,
// all that goes on in it, uninstall. The steps in between need the first ones
// only, and leave the mesh as they found it.
func TestKubernetes(t *testing.T) {
	before := inventory(t)
	if !t.Run("before", beforeInstall) || !t.Run("formats", formats) || !t.Run("upgrade", upgrades) || !t.Run("install", installs) {
		return
	}
	var ran atomic.Int32
	t.Run("beside", func(t *testing.T) {
		for _, s := range beside {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				ran.Add(1)
				s.run(t)
			})
		}
	})
	for _, s := range alone {
		t.Run(s.name, func(t *testing.T) {
			ran.Add(1)
			s.run(t)
		})
	}
	if int(ran.Load()) == len(beside)+len(alone) { // or some right was not needed
		t.Run("rights", rights)
	}
	allGone(t)
	t.Run("uninstall", func(t *testing.T) { uninstalls(t, before) })
}

// inventory is all there is in the cluster and on its nodes that an
// installation could leave behind.
func inventory(t *testing.T) []string {
	t.Helper()
	var all []string
	kinds := "namespaces,serviceaccounts,secrets,configmaps,services,deployments,daemonsets,roles,rolebindings,clusterroles,clusterrolebindings," +
		"mutatingwebhookconfigurations,validatingwebhookconfigurations,leases,poddisruptionbudgets,customresourcedefinitions,pods"
	for line := range strings.Lines(kubectl(t, "get", kinds, "-A", "-o", "jsonpath={range .items[*]}{.kind} {.metadata.namespace} {.metadata.name} {.metadata.labels} {.metadata.annotations}{\"\\n\"}{end}")) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] != "Lease" {
			all = append(all, strings.TrimSpace(line))
		}
	}
	for _, node := range []string{"node1", "node2"} {
		for line := range strings.Lines(onNode(t, node, "find /etc/cni /opt/cni /run/tulle* /sys/fs/bpf 2>/dev/null; sha256sum /etc/cni/net.d/*")) {
			all = append(all, node+" "+strings.TrimSpace(line))
		}
	}
	slices.Sort(all)
	return all
}

func beforeInstall(t *testing.T) {
	must(t, "check", "--pre")
	if r := tulle(t, "check"); r.code == 0 || !strings.Contains(r.stdout, "type: tulle install") {
		t.Errorf("check of a cluster without a mesh: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	apply(t, "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: tulle-injector}\nwebhooks: []\n")
	refused(t, "webhook tulle-injector that is not Tulle's", "install")
	kubectl(t, "delete", "mutatingwebhookconfiguration", "tulle-injector")
	refused(t, "has no mesh; type: tulle install", "mesh", "default")
	refused(t, "has no mesh", "upgrade")
	viewer := state + "/viewer.kubeconfig"
	refused(t, "create and patch clusterroles.rbac.authorization.k8s.io", "install", "--kubeconfig", viewer)
	refused(t, "no such file", "install", "--kubeconfig", "/does/not/exist")
	refused(t, "context \"nowhere\" does not exist", "install", "--context", "nowhere")
	refused(t, "no such value: frob", "install", "--set", "frob=1")
}

// selector is what the installation has meshed without being asked.
const selector = "team in (red,blue)"

// upgrades installs an older version, and brings it to this one under load.
func upgrades(t *testing.T) {
	old := filepath.Join(bin, "old", "tulle")
	if r := run(t, "", old, "install", "--auto-mesh", selector); r.code != 0 {
		t.Fatalf("install the older version: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	refused(t, "type: tulle upgrade", "install")
	if out := must(t, "check"); !strings.Contains(out, "type: tulle upgrade") {
		t.Errorf("check says nothing of the older version:\n%s", out)
	}
	namespace(t, "upgraded", true)
	namespace(t, "older", true)
	apply(t, deploy("upgraded", web(2), client)+deploy("older", web(1), client))
	rolledOut(t, "upgraded", "deployment/web", "deployment/client")
	rolledOut(t, "older", "deployment/web", "deployment/client")
	older := injected(t, "upgraded")
	underLoad(t, "older", clientPod(t, "older"), "http://web.upgraded:8080/", func() {
		must(t, "upgrade")
		// At once: the upgrade has waited until the older proxies follow it.
		proxies := must(t, "proxies")
		for _, pod := range slices.Concat(pods(t, "upgraded", "scenario"), pods(t, "older", "scenario")) {
			if !strings.Contains(proxies, pod) {
				t.Errorf("the upgrade did not wait for the proxy of %s:\n%s", pod, proxies)
			}
		}
		must(t, "mesh", "upgraded") // replaces what has an older proxy
	})
	if newer := injected(t, "upgraded"); newer == older {
		t.Errorf("proxies are of version %s before the upgrade and %s after it", older, newer)
	}
	secured(t, "upgraded", "web")
	// What has an older proxy still is served, by newer and by older ones.
	fetch(t, "upgraded", clientPod(t, "upgraded"), "http://web.older:8080/")
	fetch(t, "older", clientPod(t, "older"), "http://web:8080/")
	secured(t, "older", "web")
	if args := kubectl(t, "-n", "tulle-system", "get", "deployment", "tulle-control", "-o", "jsonpath={.spec.template.spec.containers[0].args}"); !strings.Contains(args, selector) {
		t.Errorf("the upgrade has forgotten what was set: %s", args)
	}
}

// injected is the version of the proxies of the service web.
func injected(t *testing.T, namespace string) string {
	t.Helper()
	versions := map[string]bool{}
	for _, pod := range pods(t, namespace, "scenario=web") {
		versions[kubectl(t, "-n", namespace, "get", "pod", pod, "-o", `jsonpath={.metadata.annotations.tulle\.dev/injected}`)] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(versions)), " and ")
}

func installs(t *testing.T) {
	must(t, "install", "--auto-mesh", selector) // is as doing it once
	out := must(t, "check")
	if strings.Contains(out, "✗") {
		t.Error(out)
	}
	for _, format := range []string{"json", "junit"} {
		if out := must(t, "check", "-o", format); !strings.Contains(out, "control plane") {
			t.Errorf("check -o %s: %s", format, out)
		}
	}
	refused(t, "has no namespace nowhere", "mesh", "nowhere")
	refused(t, "cannot be in it", "mesh", "kube-system")
	refused(t, "too few rights", "mesh", "default", "--kubeconfig", state+"/viewer.kubeconfig")
}

// uninstalls compares what is left with what there was.
func uninstalls(t *testing.T, before []string) {
	must(t, "uninstall")
	var left, missing []string
	eventually(t, "the cluster as it was", func() (bool, string) {
		have := map[string]bool{}
		left, missing = nil, nil
		for _, line := range before {
			have[line] = true
		}
		for _, line := range inventory(t) {
			if !have[line] {
				left = append(left, line)
			}
			delete(have, line)
		}
		missing = slices.Sorted(maps.Keys(have))
		return len(left)+len(missing) == 0, "left:\n" + strings.Join(left, "\n") + "\nmissing:\n" + strings.Join(missing, "\n")
	})
	refused(t, "has no mesh", "mesh", "default")
	must(t, "uninstall") // nothing is no error
}
