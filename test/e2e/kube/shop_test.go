package kube

import (
	"fmt"
	"strings"
)

// workload is a Deployment with a Service of the same name, and one container
// "app".
type workload struct {
	name     string
	replicas int
	args     string // of the program, as in: web :8080
	port     int    // 0: no Service
	probe    string // readiness probe in flow style; "": none. One of a second, as is usual, fails on a busy machine, and takes the pod out of its Service
	pod      string // more of the pod's spec, lines indented by six
	labels   string // more labels of the pod, as in: a: b, c: d
	notes    string // annotations of the pod
	headless bool
}

func quoteAll(args string) string {
	words := strings.Fields(args)
	for i, w := range words {
		words[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(words, ", ")
}

// container is the pod's one.
func (w workload) container() string {
	c := fmt.Sprintf("{name: app, image: 'tulle.test/app:1', imagePullPolicy: Never, args: [%s]", quoteAll(w.args))
	if w.port != 0 {
		c += fmt.Sprintf(", ports: [{name: main, containerPort: %d}]", w.port)
	}
	if w.probe != "" {
		c += ", readinessProbe: " + w.probe
	}
	return c + ", securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}"
}

// pod is the template.
func (w workload) template() string {
	labels := "scenario: " + w.name
	if w.labels != "" {
		labels += ", " + w.labels
	}
	return fmt.Sprintf(`  template:
    metadata: {labels: {%s}, annotations: {%s}}
    spec:
      terminationGracePeriodSeconds: 20
      securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
%s      containers:
      - %s
`, labels, w.notes, w.pod, w.container())
}

// manifest is the workload and its Service.
func (w workload) manifest(namespace, kind string) string {
	more := ""
	if kind == "StatefulSet" {
		more = fmt.Sprintf("  serviceName: %s\n  podManagementPolicy: Parallel\n", w.name)
	}
	m := fmt.Sprintf(`---
apiVersion: apps/v1
kind: %s
metadata: {name: %s, namespace: %s}
spec:
  replicas: %d
  selector: {matchLabels: {scenario: %s}}
%s%s`, kind, w.name, namespace, w.replicas, w.name, more, w.template())
	if w.port == 0 {
		return m
	}
	address := ""
	if w.headless {
		address = "clusterIP: None, "
	}
	return m + fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s}
spec: {%sselector: {scenario: %s}, ports: [{name: main, port: %d, targetPort: main}]}
`, w.name, namespace, address, w.name, w.port)
}

// deploy writes several workloads as Deployments.
func deploy(namespace string, all ...workload) string {
	var b strings.Builder
	for _, w := range all {
		if w.replicas == 0 {
			w.replicas = 1
		}
		b.WriteString(w.manifest(namespace, "Deployment"))
	}
	return b.String()
}

// client is a pod that waits to be told what to do.
var client = workload{name: "client", args: "hold"}

// web answers with its address.
func web(replicas int) workload {
	return workload{name: "web", replicas: replicas, args: "web :8080", port: 8080, probe: "{httpGet: {path: /, port: main}, periodSeconds: 1, timeoutSeconds: 10}"}
}
