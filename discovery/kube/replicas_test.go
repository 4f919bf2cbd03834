package kube

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestReplicas(t *testing.T) {
	since := func(p *corev1.Pod, second int64) *corev1.Pod {
		p.Status.StartTime = ptr(metav1.NewTime(time.Unix(second, 0)))
		return p
	}
	source, _, _ := start(t,
		newService("system/control", []string{"10.96.0.1"}, port("", 80)),
		newSlice("system/control", "-4", 80, of("system/c", "10.0.0.3"), of("system/b", "10.0.0.2"), of("system/a", "10.0.0.1"),
			with(of("system/oldest", "10.0.0.9"), false, false, false), of("system/unknown", "10.0.0.8")),
		newSlice("system/control", "-6", 80, of("system/a", "fd00::1")),
		since(plain(newPod("system/a", "10.0.0.1", "fd00::1")), 200), since(plain(newPod("system/b", "10.0.0.2")), 100),
		since(plain(newPod("system/c", "10.0.0.3")), 100), since(plain(newPod("system/oldest", "10.0.0.9")), 1),
	)
	var got []string
	for _, r := range source.Replicas("system", "control") {
		got = append(got, r.Pod+" "+r.Addr.String())
	}
	if want := "[b 10.0.0.2 c 10.0.0.3 a 10.0.0.1]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
	if others := source.Replicas("system", "nobody"); others != nil {
		t.Errorf("%v", others)
	}
}
