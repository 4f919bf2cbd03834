package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The network plugins of this cluster enforce no NetworkPolicy. An enforcer of its
// own stands in for those that do: what the policies of one namespace say of the
// pods that are there now, it writes as nftables rules into the network namespaces
// of the nodes, through which all that pods send each other is routed. It goes by
// each packet's own addresses and ports, as real ones do, and knows nothing of the
// mesh. What a node itself sends to its pods (the kubelet's probes) no policy
// concerns. As it looks once, whoever starts later is not concerned either.

// enforce makes the nodes refuse what the namespace's policies do not allow, until
// lift.
func enforce(t *testing.T, namespace string) {
	t.Helper()
	rules := firewallOf(t, namespace)
	for node := range redirects {
		onNode(t, node, fmt.Sprintf("nft -f - <<'RULES'\ntable inet %[1]s {}\ndelete table inet %[1]s\n%[2]sRULES", namespace, rules))
	}
}

// lift undoes enforce.
func lift(t *testing.T, namespace string) {
	for node := range redirects {
		onNode(t, node, fmt.Sprintf("nft -f - <<'RULES'\ntable inet %[1]s {}\ndelete table inet %[1]s\nRULES", namespace))
	}
}

// surroundings are the pods that policies may speak of.
type surroundings struct {
	pods       []corev1.Pod
	namespaces map[string]labels.Set
}

// firewallOf writes a namespace's policies as a table of nftables.
func firewallOf(t *testing.T, namespace string) string {
	t.Helper()
	list := decode[networkingv1.NetworkPolicyList](t, kubectl(t, "-n", namespace, "get", "networkpolicies", "-o", "json"))
	all := surroundings{
		pods:       decode[corev1.PodList](t, kubectl(t, "get", "pods", "-A", "-o", "json")).Items,
		namespaces: map[string]labels.Set{},
	}
	for _, n := range decode[corev1.NamespaceList](t, kubectl(t, "get", "namespaces", "-o", "json")).Items {
		all.namespaces[n.Name] = n.Labels
	}
	var jumps, chains strings.Builder
	for _, p := range all.pods {
		if p.Namespace != namespace || p.Status.PodIP == "" {
			continue
		}
		for _, way := range []struct {
			kind       networkingv1.PolicyType
			own, other string // this pod's address in a packet, and that of who is at the other end
		}{{networkingv1.PolicyTypeIngress, "daddr", "saddr"}, {networkingv1.PolicyTypeEgress, "saddr", "daddr"}} {
			allowed, isolated := all.allowed(t, list.Items, p, way.kind, way.other)
			if !isolated {
				continue
			}
			fmt.Fprintf(&jumps, "    ip %s %s jump %s_%s\n", way.own, p.Status.PodIP, way.kind, p.Status.PodIP)
			fmt.Fprintf(&chains, "  chain %s_%s {\n%s    meta l4proto tcp reject with tcp reset\n    drop\n  }\n", way.kind, p.Status.PodIP, allowed)
		}
	}
	if jumps.Len() == 0 {
		t.Fatalf("no pod of %s is concerned by any of its %d policies", namespace, len(list.Items))
	}
	// Answers are allowed to whatever was; all else is asked about packet by packet,
	// so that connections of before a policy end with it.
	return fmt.Sprintf("table inet %s {\n%s  chain forward {\n    type filter hook forward priority 10; policy accept;\n    ct direction reply accept\n%s  }\n}\n",
		namespace, chains.String(), jumps.String())
}

// allowed are the rules for what all policies together allow a pod in one
// direction; isolated: at least one concerns it, so that all else is refused.
func (s surroundings) allowed(t *testing.T, policies []networkingv1.NetworkPolicy, pod corev1.Pod, kind networkingv1.PolicyType, other string) (rules string, isolated bool) {
	t.Helper()
	var b strings.Builder
	for _, policy := range policies {
		if !slices.Contains(policy.Spec.PolicyTypes, kind) || !selects(t, &policy.Spec.PodSelector, pod.Labels) {
			continue
		}
		isolated = true
		if kind == networkingv1.PolicyTypeIngress {
			for _, rule := range policy.Spec.Ingress {
				s.write(t, &b, pod.Namespace, rule.From, rule.Ports, other)
			}
			continue
		}
		for _, rule := range policy.Spec.Egress {
			s.write(t, &b, pod.Namespace, rule.To, rule.Ports, other)
		}
	}
	return b.String(), isolated
}

// write adds one rule of a policy: who is at the other end, and the ports.
func (s surroundings) write(t *testing.T, b *strings.Builder, namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, other string) {
	t.Helper()
	from := ""
	if len(peers) > 0 {
		addresses := s.addresses(t, namespace, peers)
		if len(addresses) == 0 {
			return
		}
		from = fmt.Sprintf("ip %s { %s } ", other, strings.Join(addresses, ", "))
	}
	if len(ports) == 0 {
		fmt.Fprintf(b, "    %sreturn\n", from)
	}
	for _, port := range ports {
		if port.Port == nil || port.Port.Type != intstr.Int || port.EndPort != nil {
			t.Fatal("a policy with ranges of ports, or named ones, takes another enforcer")
		}
		protocol := "tcp"
		if port.Protocol != nil {
			protocol = strings.ToLower(string(*port.Protocol))
		}
		fmt.Fprintf(b, "    %s%s dport %d return\n", from, protocol, port.Port.IntValue())
	}
}

// addresses are those of the pods that a policy's peers select.
func (s surroundings) addresses(t *testing.T, namespace string, peers []networkingv1.NetworkPolicyPeer) []string {
	t.Helper()
	var found []string
	for _, peer := range peers {
		if peer.IPBlock != nil {
			t.Fatal("a policy with blocks of addresses takes another enforcer")
		}
		for _, p := range s.pods {
			here := p.Namespace == namespace
			if peer.NamespaceSelector != nil {
				here = selects(t, peer.NamespaceSelector, s.namespaces[p.Namespace])
			}
			if here && !p.Spec.HostNetwork && p.Status.PodIP != "" && (peer.PodSelector == nil || selects(t, peer.PodSelector, p.Labels)) {
				found = append(found, p.Status.PodIP)
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func selects(t *testing.T, by *metav1.LabelSelector, who labels.Set) bool {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(by)
	if err != nil {
		t.Fatal(err)
	}
	return selector.Matches(who)
}
