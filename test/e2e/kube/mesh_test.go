package kube

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// TestKubernetes tells the story of a cluster: no mesh, install, all that goes
// on in it, uninstall. The steps in between depend on the first only.
func TestKubernetes(t *testing.T) {
	before := inventory(t)
	if !t.Run("before", beforeInstall) || !t.Run("install", installs) {
		return
	}
	for _, scenario := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"traffic", traffic},
		{"injection", injection},
		{"addresses", addresses},
		{"jobs", jobs},
		{"strict", strict},
		{"restricted", restricted},
		{"rolling restart", rollingRestart},
		{"control plane away", controlAway},
		{"injector away", injectorAway},
		{"agent away", agentAway},
		{"network rewritten", networkRewritten},
	} {
		t.Run(scenario.name, scenario.run)
	}
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
	refused(t, "has no mesh; type: tulle install", "mesh", "default")
	refused(t, "has no mesh", "upgrade")
	viewer := state + "/viewer.kubeconfig"
	refused(t, "create clusterroles.rbac.authorization.k8s.io", "install", "--kubeconfig", viewer)
	refused(t, "no such file", "install", "--kubeconfig", "/does/not/exist")
	refused(t, "context \"nowhere\" does not exist", "install", "--context", "nowhere")
	refused(t, "no such value: frob", "install", "--set", "frob=1")
}

func installs(t *testing.T) {
	must(t, "install")
	out := must(t, "check")
	if strings.Contains(out, "✗") {
		t.Error(out)
	}
	must(t, "install") // is as doing it once
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
