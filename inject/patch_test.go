package inject

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/mesh/cluster"
)

var update = flag.Bool("update", false, "write the golden files anew")

func testConfig() Config {
	return Config{
		Image: "registry.example.com/tulle/proxy:1.2.3", InitImage: "registry.example.com/tulle/cni:1.2.3", Version: "1.2.3",
		TrustDomain: "cluster.local", Control: "tulle-control.tulle-system.svc:4190", CNI: true, Native: true,
	}
}

// apply makes the patch and returns the pod, which has to be one: unknown fields
// are refused.
func applied(t *testing.T, object []byte, patch []Operation) ([]byte, *corev1.Pod) {
	t.Helper()
	encoded, err := json.Marshal(patch)
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := jsonpatch.DecodePatch(encoded)
	if err != nil {
		t.Fatal(err)
	}
	out, err := decoded.Apply(object)
	if err != nil {
		t.Fatalf("%v\n%s", err, encoded)
	}
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict(out, &pod); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out, &pod
}

// The golden files are pods in, pods out: testdata/NAME.yaml and NAME.CONFIG.yaml.
func TestPatchGolden(t *testing.T) {
	old, noCNI := testConfig(), testConfig()
	old.Native = false
	noCNI.CNI = false
	configs := map[string]Config{"cni": testConfig(), "no-cni": noCNI, "old": old}
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no input", err)
	}
	for _, input := range inputs {
		text, err := os.ReadFile(input)
		if err != nil {
			t.Fatal(err)
		}
		object, err := yaml.YAMLToJSON(text)
		if err != nil {
			t.Fatal(err)
		}
		for name, config := range configs {
			golden := strings.TrimSuffix(input, ".in.yaml") + "." + name + ".yaml"
			result, err := config.Patch(object, Origin{Namespace: "shop", Defaults: map[string]string{cluster.SkipOutboundPorts: "9999", cluster.Policy: "strict"}})
			if err != nil {
				t.Fatalf("%s: %v", golden, err)
			}
			out, pod := applied(t, object, result.Patch)
			got, err := yaml.JSONToYAML(out)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s differs (to agree: go test ./inject -update):\n%s", golden, got)
			}
			again, err := config.Patch(out, Origin{Namespace: "shop"})
			if err != nil || len(again.Patch) != 0 {
				t.Errorf("%s: a second time: %v, %v", golden, again.Patch, err)
			}
			if config.CNI {
				checkRestricted(t, golden, pod)
			}
		}
	}
}

// checkRestricted holds our containers to Pod Security's level "restricted".
func checkRestricted(t *testing.T, name string, pod *corev1.Pod) {
	t.Helper()
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		if c.Name != cluster.ProxyContainer {
			continue
		}
		s := c.SecurityContext
		if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !*s.RunAsNonRoot || *s.RunAsUser != 2102 || !*s.ReadOnlyRootFilesystem ||
			len(s.Capabilities.Add) != 0 || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func podJSON(t *testing.T, text string) []byte {
	t.Helper()
	object, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return object
}

func annotated(t *testing.T, annotations map[string]string) []byte {
	t.Helper()
	object, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"name": "web", "annotations": annotations},
		"spec":     map[string]any{"containers": []any{map[string]any{"name": "web"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return object
}

func TestAnnotations(t *testing.T) {
	for _, tt := range []struct{ key, value, want string }{ // want: what the error says; "": good
		{"skip-inbound-ports", "3306,4000-4010", ""},
		{"skip-inbound-ports", "0", `"0" is not a port`},
		{"skip-inbound-ports", "70000", `"70000" is not a port`},
		{"skip-inbound-ports", "", "not a port"},
		{"skip-inbound-ports", "80\n81", `"80\n81"`},
		{"skip-inbound-ports", `80"`, `"80\""`},
		{"skip-inbound-ports", "4143", "the proxy's own"},
		{"skip-inbound-ports", "1-2000", "at most 1024"},
		{"skip-outbound-ports", "http", "not a port"},
		{"opaque-ports", "1-65535", ""},
		{"opaque-ports", "5432;", "not a port"},
		{"protocols", "8080=http/1,9090=http/2", ""},
		{"protocols", "8080=smtp", "not a protocol"},
		{"log-level", "debug", ""},
		{"log-level", "Debug", "debug, info, warn or error"},
		{"log-level", "debug\nx: y", "debug, info, warn or error"},
		{"cpu-request", "100m", ""},
		{"cpu-request", "0.5", ""},
		{"cpu-request", "0", "amount of CPU"},
		{"cpu-request", "-1", "amount of CPU"},
		{"cpu-request", "1 core", "amount of CPU"},
		{"cpu-limit", "5m", ""}, // the default request is lowered
		{"memory-request", "1Gi", "above tulle.dev/memory-limit"},
		{"memory-limit", "8Mi", ""},
		{"memory-limit", "8MB", "amount of memory"},
		{"memory-limit", "1e3", "amount of memory"},
		{"inject", "enabled", ""},
		{"inject", "true", "enabled or disabled"},
		{"policy", "strict", "belongs on the namespace"},
		{"skip-ports", "80", "unknown; known are tulle.dev/inject"},
		{"", "x", "unknown"},
		{"injected", "0.9", ""}, // copied from a pod that runs
	} {
		_, err := testConfig().Patch(annotated(t, map[string]string{"tulle.dev/" + tt.key: tt.value, "example.com/other": "\"\n"}), Origin{})
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s=%q: %v", tt.key, tt.value, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s=%q: %v, want an error with %s", tt.key, tt.value, err, tt.want)
		case tt.want != "" && tt.key != "" && !strings.Contains(err.Error(), "tulle.dev/"+tt.key):
			t.Errorf("%s=%q: %v does not name the annotation", tt.key, tt.value, err)
		}
	}
	// All that is wrong is said at once.
	_, err := testConfig().Patch(annotated(t, map[string]string{"tulle.dev/log-level": "x", "tulle.dev/opaque-ports": "0"}), Origin{Defaults: map[string]string{cluster.CPULimit: "much"}})
	for _, want := range []string{"log-level", "opaque-ports", "of the namespace: annotation tulle.dev/cpu-limit"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
}

// A pod says that an init container redirects its traffic if it has one, and not
// because it is a copy of one that had.
func TestRedirectAnnotation(t *testing.T) {
	noCNI := testConfig()
	noCNI.CNI = false
	for _, tt := range []struct {
		config Config
		had    map[string]string
		want   string
	}{
		{testConfig(), nil, ""},
		{testConfig(), map[string]string{cluster.RedirectAnnotation: cluster.RedirectInit}, ""},
		{noCNI, nil, cluster.RedirectInit},
		{noCNI, map[string]string{cluster.RedirectAnnotation: "x"}, cluster.RedirectInit},
	} {
		object := annotated(t, tt.had)
		result, err := tt.config.Patch(object, Origin{})
		if err != nil {
			t.Fatal(err)
		}
		_, pod := applied(t, object, result.Patch)
		if got := pod.Annotations[cluster.RedirectAnnotation]; got != tt.want {
			t.Errorf("CNI %v, annotations %v: it says %q, want %q", tt.config.CNI, tt.had, got, tt.want)
		}
	}
}

// Ports add to what is skipped anyway; other settings of a pod win.
func TestDefaults(t *testing.T) {
	config := testConfig()
	config.SkipInbound = []cluster.Ports{{First: 22, Last: 22}}
	object := annotated(t, map[string]string{cluster.SkipInboundPorts: "80", cluster.LogLevel: "warn"})
	result, err := config.Patch(object, Origin{Defaults: map[string]string{
		cluster.SkipInboundPorts: "90-91,80", cluster.LogLevel: "debug", cluster.MemoryLimit: "64Mi", cluster.Inject: "enabled", "tulle.dev/what": "x",
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, pod := applied(t, object, result.Patch)
	proxy := pod.Spec.InitContainers[0]
	if got := pod.Annotations[cluster.SkipInboundPorts]; got != "22,80,90-91" {
		t.Errorf("skipped: %s", got)
	}
	if args := strings.Join(proxy.Args, " "); !strings.Contains(args, "-log-level=warn") || strings.Contains(args, "debug") {
		t.Errorf("%s", args)
	}
	if got := proxy.Resources.Limits.Memory().String(); got != "64Mi" {
		t.Errorf("memory: %s", got)
	}
}

func TestSkipped(t *testing.T) {
	old := testConfig()
	old.Native = false
	containers := "spec: {containers: [{name: web}]}\n"
	for _, tt := range []struct {
		name, pod string
		config    Config
		reason    string
		warned    bool
	}{
		{"host network", "metadata: {name: web}\nspec: {hostNetwork: true, containers: [{name: web}]}", testConfig(), "hostNetwork", true},
		{"annotation", "metadata: {annotations: {tulle.dev/inject: disabled}}\n" + containers, testConfig(), "annotated", false},
		{"label", "metadata: {labels: {tulle.dev/inject: disabled}}\n" + containers, testConfig(), "labelled", true},
		{"windows", "spec: {os: {name: windows}, containers: [{name: web}]}", testConfig(), "Windows", true},
		{"a job on an old cluster", "metadata: {ownerReferences: [{kind: Job, name: j, controller: true}]}\n" + containers, old, "never end", true},
		{"a proxy is there", "spec: {initContainers: [{name: tulle-proxy}], containers: [{name: web}]}", testConfig(), "", false},
		{"a proxy is there, and mistakes", "metadata: {annotations: {tulle.dev/x: z}}\nspec: {containers: [{name: web}, {name: tulle-proxy}]}", testConfig(), "", false},
	} {
		result, err := tt.config.Patch(podJSON(t, tt.pod), Origin{})
		if err != nil || len(result.Patch) != 0 || !strings.Contains(result.Skipped, tt.reason) || (len(result.Warnings) > 0) != tt.warned {
			t.Errorf("%s: %+v, %v", tt.name, result, err)
		}
	}
}

func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct{ pod, want string }{
		"the proxy's user":         {"spec: {containers: [{name: web, securityContext: {runAsUser: 2102}}]}", "runs as user 2102"},
		"the proxy's user, of all": {"spec: {securityContext: {runAsUser: 2102}, containers: [{name: web}]}", "runs as user 2102"},
		"the proxy's port":         {"spec: {containers: [{name: web, ports: [{containerPort: 4143}]}]}", "declares port 4143"},
		"our name":                 {"spec: {containers: [{name: tulle-init}]}", "named tulle-init"},
		"no containers":            {"spec: {}", "no containers"},
		"no pod":                   {"[]", "not a pod"},
		"wrong types":              {"spec: {containers: [{name: 1}]}", "not a pod"},
	} {
		if _, err := testConfig().Patch(podJSON(t, tt.pod), Origin{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Of a container that says otherwise the pod's user does not count; UDP is not redirected.
	for _, pod := range []string{
		"spec: {securityContext: {runAsUser: 2102}, containers: [{name: web, securityContext: {runAsUser: 1}}]}",
		"spec: {containers: [{name: web, ports: [{containerPort: 4143, protocol: UDP}]}]}",
	} {
		if _, err := testConfig().Patch(podJSON(t, pod), Origin{}); err != nil {
			t.Errorf("%s: %v", pod, err)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	if err := testConfig().Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"image":   func(c *Config) { c.Image = "" },
		"init":    func(c *Config) { c.CNI, c.InitImage = false, "" },
		"version": func(c *Config) { c.Version = "" },
		"domain":  func(c *Config) { c.TrustDomain = "X" },
		"control": func(c *Config) { c.Control = "host" },
		"level":   func(c *Config) { c.LogLevel = "loud" },
		"memory":  func(c *Config) { c.Resources.MemoryLimit = "lots" },
	} {
		c := testConfig()
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Whatever comes in, what goes out is a patch that applies.
func FuzzPatch(f *testing.F) {
	inputs, _ := filepath.Glob("testdata/*.in.yaml")
	for _, input := range inputs {
		text, err := os.ReadFile(input)
		if err != nil {
			f.Fatal(err)
		}
		object, err := yaml.YAMLToJSON(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(object)
	}
	f.Add([]byte(`{"spec":{"containers":[{"name":"a","livenessProbe":{"httpGet":{"port":"$(X)","path":"\n"}}}]}}`))
	config := testConfig()
	f.Fuzz(func(t *testing.T, object []byte) {
		var pod corev1.Pod
		if json.Unmarshal(object, &pod) != nil {
			return // the API server lets no such pod through
		}
		object, err := json.Marshal(&pod)
		if err != nil {
			return
		}
		result, err := config.Patch(object, Origin{})
		if err == nil && len(result.Patch) > 0 {
			applied(t, object, result.Patch)
		}
	})
}
