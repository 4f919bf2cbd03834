package kube

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/tulle-mesh/tulle/discovery"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// text writes a service down, a line for itself and one for each port.
func text(s *discovery.ClusterService) string {
	if s == nil {
		return "none"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s.%s %v", s.Name, s.Namespace, s.Addrs)
	if len(s.Ingress)+len(s.External) > 0 {
		fmt.Fprintf(&b, " %v %v", s.Ingress, s.External)
	}
	if s.NodeLocal {
		b.WriteString(" local")
	}
	for _, p := range s.Ports {
		fmt.Fprintf(&b, "\n%d %s", p.Port, p.Protocol)
		for _, e := range p.Endpoints {
			fmt.Fprintf(&b, "\n  %s", e.Addr)
			if e.Workload != "" {
				b.WriteString(" " + e.Workload)
			}
			if !e.ID.IsZero() {
				fmt.Fprintf(&b, " %s/%s", e.ID.Namespace, e.ID.Account)
			}
			if e.Workload != "" && !e.Own {
				b.WriteString(" of another namespace")
			}
			if e.Terminating {
				b.WriteString(" terminating")
			}
			if len(e.Zones) > 0 {
				fmt.Fprintf(&b, " %v", e.Zones)
			}
		}
	}
	return b.String()
}

func TestBuild(t *testing.T) {
	web1, web2 := newPod("shop/web-1", "10.0.0.1"), newPod("shop/web-2", "10.0.0.2")
	outside := plain(newPod("shop/old-1", "10.0.0.3"))
	both := newPod("shop/both-1", "10.0.0.4", "fd00::4")
	host := newPod("shop/host-1", "192.0.2.1")
	host.Spec.HostNetwork = true
	done := newPod("shop/done-1", "10.0.0.5")
	done.Status.Phase = corev1.PodSucceeded
	opaque := newPod("shop/db-0", "10.0.0.6")
	opaque.Annotations[cluster.OpaquePorts] = "5000-6000"
	opaque.Annotations[cluster.Protocols] = "8080=http/2"
	labelOnly := newPod("shop/fake-1", "10.0.0.7")
	labelOnly.Spec.InitContainers = nil
	fallback := newPod("shop/fallback-1", "10.0.0.8")
	fallback.Spec.Containers, fallback.Spec.InitContainers = fallback.Spec.InitContainers, nil
	noAccount := newPod("other/x-1", "10.0.1.1")
	noAccount.Spec.ServiceAccountName = ""
	k := knownPods(newPod("shop/late-1"), newPod("shop/twin-1", "10.0.0.9"), plain(newPod("other/twin-2", "10.0.0.9")), web1, web2, outside, both, host, done, opaque, labelOnly, fallback, noAccount)

	vip := []string{"10.96.0.1"}
	zoned := of("shop/web-1", "10.0.0.1")
	zoned.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "a"}, {Name: "b"}}}
	recreated := of("shop/web-1", "10.0.0.1")
	recreated.TargetRef.UID = "another"
	for _, tt := range []struct {
		name    string
		service *corev1.Service
		change  func(*corev1.Service)
		slices  []*discoveryv1.EndpointSlice
		want    string
	}{
		{"cluster IP, target port", newService("shop/web", vip, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-a", 8080, of("shop/web-1", "10.0.0.1"), of("shop/web-2", "10.0.0.2"))},
			"web.shop [10.96.0.1]\n80 unknown\n  10.0.0.1:8080 web-1 shop/web\n  10.0.0.2:8080 web-2 shop/web"},
		{"some endpoints outside the mesh", newService("shop/web", vip, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-a", 80, of("shop/web-1", "10.0.0.1"), of("shop/old-1", "10.0.0.3"), of("shop/host-1", "192.0.2.1"))},
			"web.shop [10.96.0.1]\n80 unknown\n  10.0.0.1:80 web-1 shop/web\n  10.0.0.3:80 old-1\n  192.0.2.1:80 host-1"},
		{"a label without a proxy; a proxy beside the application", newService("shop/web", vip, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-a", 80, of("shop/fake-1", "10.0.0.7"), of("shop/fallback-1", "10.0.0.8"))},
			"web.shop [10.96.0.1]\n80 unknown\n  10.0.0.7:80 fake-1\n  10.0.0.8:80 fallback-1 shop/web"},
		{"pods not known yet, ended, made anew", newService("shop/web", vip, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-a", 80, of("shop/new-1", "10.0.0.9"), of("shop/done-1", "10.0.0.5"), recreated)},
			"web.shop [10.96.0.1]\n80 unknown"},
		{"headless", newService("shop/web", []string{"None"}, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-a", 80, of("shop/web-1", "10.0.0.1"))},
			"web.shop []\n80 unknown\n  10.0.0.1:80 web-1 shop/web"},
		{"external name", newService("shop/web", nil, port("", 80)), func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, nil, "none"},
		{"named ports, UDP left out", newService("shop/web", vip, port("http", 80), corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, port("admin", 90)), nil,
			[]*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
				s := newSlice("shop/web", "-a", 0, of("shop/web-1", "10.0.0.1"))
				s.Ports = []discoveryv1.EndpointPort{
					{Name: ptr("dns"), Port: ptr[int32](53), Protocol: ptr(corev1.ProtocolUDP)},
					{Name: ptr("admin"), Port: ptr[int32](9000)}, {Name: ptr("http"), Port: ptr[int32](8000)},
				}
				return s
			}()},
			"web.shop [10.96.0.1]\n80 unknown\n  10.0.0.1:8000 web-1 shop/web\n90 unknown\n  10.0.0.1:9000 web-1 shop/web"},
		{"a named target port that differs by pod: two slices", newService("shop/web", vip, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-b", 8081, of("shop/web-2", "10.0.0.2")), newSlice("shop/web", "-a", 8080, of("shop/web-1", "10.0.0.1"))},
			"web.shop [10.96.0.1]\n80 unknown\n  10.0.0.1:8080 web-1 shop/web\n  10.0.0.2:8081 web-2 shop/web"},
		{"dual stack", newService("shop/both", []string{"10.96.0.2", "fd00:96::2"}, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/both", "-4", 80, of("shop/both-1", "10.0.0.4")), newSlice("shop/both", "-6", 80, of("shop/both-1", "fd00::4"))},
			"both.shop [10.96.0.2 fd00:96::2]\n80 unknown\n  10.0.0.4:80 both-1 shop/web\n  [fd00::4]:80 both-1 shop/web"},
		{"ready, ending but serving, ending, not ready", newService("shop/web", vip, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-a", 80, with(of("shop/web-1", "10.0.0.1"), true, true, false), with(of("shop/web-2", "10.0.0.2"), false, true, true),
				with(of("shop/old-1", "10.0.0.3"), false, false, true), with(of("shop/both-1", "10.0.0.4"), false, false, false))},
			"web.shop [10.96.0.1]\n80 unknown\n  10.0.0.1:80 web-1 shop/web\n  10.0.0.2:80 web-2 shop/web terminating"},
		{"publishNotReadyAddresses", newService("shop/web", []string{"None"}, port("", 80)), func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true },
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-a", 80, with(of("shop/web-1", "10.0.0.1"), false, false, false))},
			"web.shop []\n80 unknown\n  10.0.0.1:80 web-1 shop/web"},
		{"without a selector: an address elsewhere, one of a pod of the mesh, one of another namespace", newService("shop/db", vip, port("", 5432)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/db", "-mine", 5432, discoveryv1.Endpoint{Addresses: []string{"198.51.100.7"}},
				discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}}, discoveryv1.Endpoint{Addresses: []string{"10.0.1.1"}})},
			"db.shop [10.96.0.1]\n5432 unknown\n  198.51.100.7:5432\n  10.0.0.1:5432 web-1 shop/web\n  10.0.1.1:5432 x-1 other/default of another namespace"},
		{"host names", newService("shop/db", vip, port("", 5432)), nil,
			[]*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
				s := newSlice("shop/db", "-x", 1, discoveryv1.Endpoint{Addresses: []string{"example.com"}})
				s.AddressType = discoveryv1.AddressTypeFQDN
				return s
			}()}, "db.shop [10.96.0.1]\n5432 unknown"},
		{"an endpoint in two slices", newService("shop/web", vip, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-a", 80, of("shop/web-1", "10.0.0.1")), newSlice("shop/web", "-b", 80, of("shop/web-1", "10.0.0.1"))},
			"web.shop [10.96.0.1]\n80 unknown\n  10.0.0.1:80 web-1 shop/web"},
		{"appProtocol", newService("shop/web", vip, func() corev1.ServicePort { p := port("", 80); p.AppProtocol = ptr("kubernetes.io/h2c"); return p }()), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-a", 80, of("shop/web-1", "10.0.0.1"))},
			"web.shop [10.96.0.1]\n80 http/2\n  10.0.0.1:80 web-1 shop/web"},
		{"protocols that the pods declare", newService("shop/db", vip, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/db", "-a", 5432, of("shop/db-0", "10.0.0.6"))},
			"db.shop [10.96.0.1]\n80 tcp\n  10.0.0.6:5432 db-0 shop/web"},
		{"zones", newService("shop/web", vip, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-a", 80, zoned)},
			"web.shop [10.96.0.1]\n80 unknown\n  10.0.0.1:80 web-1 shop/web [a b]"},
		{"node port, external addresses, load balancers, this node only", newService("shop/web", vip, port("", 80)), func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalIPs = corev1.ServiceTypeLoadBalancer, []string{"203.0.113.1"}
			s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.2"}, {IP: "203.0.113.3", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb.example.com"}}
		}, nil, "web.shop [10.96.0.1] [203.0.113.2] [203.0.113.1] local\n80 unknown"},
		{"headless: kube-proxy answers nowhere", newService("shop/web", []string{"None"}, port("", 80)), func(s *corev1.Service) {
			s.Spec.ExternalIPs, s.Status.LoadBalancer.Ingress = []string{"203.0.113.1"}, []corev1.LoadBalancerIngress{{IP: "203.0.113.2"}}
		}, nil, "web.shop []\n80 unknown"},
		{"a pod named for the address of another one, of another namespace, for its own and for none's; a pod that has none yet; one of the node", newService("shop/a", vip, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/a", "-x", 80, of("shop/old-1", "10.0.0.1"), of("shop/old-1", "10.0.1.1"), of("shop/old-1", "10.0.0.3"), of("shop/old-1", "10.0.0.99"),
				of("shop/late-1", "10.0.0.2"), of("shop/late-1", "10.0.0.98"), of("shop/host-1", "10.0.0.2"), of("shop/host-1", "192.0.2.1"))},
			"a.shop [10.96.0.1]\n80 unknown\n  10.0.0.3:80 old-1\n  10.0.0.99:80 old-1\n  10.0.0.98:80 late-1 shop/web\n  192.0.2.1:80 host-1"},
		{"an address that goes from one pod to another", newService("shop/web", vip, port("", 80)), nil,
			[]*discoveryv1.EndpointSlice{newSlice("shop/web", "-a", 80, of("shop/twin-1", "10.0.0.9"), discoveryv1.Endpoint{Addresses: []string{"10.0.0.9"}}),
				newSlice("shop/web", "-b", 80, discoveryv1.Endpoint{Addresses: []string{"10.0.0.9"}}, of("shop/web-1", "10.0.0.9"))},
			"web.shop [10.96.0.1]\n80 unknown\n  10.0.0.9:80 twin-1 shop/web"},
	} {
		if tt.change != nil {
			tt.change(tt.service)
		}
		if got := text(k.builder().build(tt.service, tt.slices)); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
}

func TestProtocolOf(t *testing.T) {
	for app, want := range map[string]string{
		"http": "http/1", "kubernetes.io/ws": "http/1", "grpc": "http/2", "http2": "http/2", "kubernetes.io/h2c": "http/2", "tcp": "tcp", "mysql": "tcp",
		"https": "unknown", "tls": "unknown", "example.com/thing": "unknown", "": "unknown",
	} {
		if got := protocolOf(&app).String(); got != want {
			t.Errorf("%s: %s, want %s", app, got, want)
		}
	}
}

// What is not needed must not be kept.
func TestTrim(t *testing.T) {
	p, err := trimPod(newPod("shop/web-1", "10.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%+v", p); strings.Contains(s, "xxxx") || !strings.Contains(s, "web-1") {
		t.Errorf("%s", s)
	}
	again, err := trimPod(p)
	if err != nil || again != p {
		t.Error("not idempotent")
	}
	e := of("shop/web-1", "10.0.0.1")
	e.Hostname, e.Zone = ptr("h"), ptr("z")
	s, err := trimSlice(newSlice("shop/web", "-a", 80, e))
	if err != nil {
		t.Fatal(err)
	}
	slice := s.(*discoveryv1.EndpointSlice)
	if len(slice.Labels) != 1 || slice.Endpoints[0].Hostname != nil || slice.Endpoints[0].TargetRef.Name != "web-1" {
		t.Errorf("%+v", slice)
	}
}
