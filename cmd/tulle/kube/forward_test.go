package kube

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Who takes connections and says nothing does not hold a command up beyond its time.
func TestTunnelGivesUp(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	config := &rest.Config{Host: "http://" + silent.Addr().String()}
	c := &cluster{name: "lab", config: config, client: kubernetes.NewForConfigOrDie(config)}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "control", Namespace: "tulle"}}
	if _, err := c.tunnelTo(ctx, pod); err == nil || !strings.Contains(err.Error(), "reach pod control: cluster lab") {
		t.Errorf("%v", err)
	}
}
