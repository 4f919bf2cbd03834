package inject

import (
	"fmt"
	"strings"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// The parts of a pod that are written, in the order in which people write them.
type (
	container struct {
		Name                     string         `json:"name"`
		Image                    string         `json:"image"`
		ImagePullPolicy          string         `json:"imagePullPolicy,omitempty"`
		RestartPolicy            string         `json:"restartPolicy,omitempty"`
		Args                     []string       `json:"args"`
		Env                      []env          `json:"env,omitempty"`
		Ports                    []port         `json:"ports,omitempty"`
		Lifecycle                *lifecycle     `json:"lifecycle,omitempty"`
		StartupProbe             *kubeletProbe  `json:"startupProbe,omitempty"`
		LivenessProbe            *kubeletProbe  `json:"livenessProbe,omitempty"`
		ReadinessProbe           *kubeletProbe  `json:"readinessProbe,omitempty"`
		Resources                resources      `json:"resources"`
		SecurityContext          containerRules `json:"securityContext"`
		TerminationMessagePolicy string         `json:"terminationMessagePolicy"`
		VolumeMounts             []volumeMount  `json:"volumeMounts,omitempty"`
	}
	env struct {
		Name      string     `json:"name"`
		Value     string     `json:"value,omitempty"`
		ValueFrom *valueFrom `json:"valueFrom,omitempty"`
	}
	valueFrom struct {
		FieldRef fieldRef `json:"fieldRef"`
	}
	fieldRef struct {
		FieldPath string `json:"fieldPath"`
	}
	port struct {
		Name          string `json:"name"`
		ContainerPort int    `json:"containerPort"`
	}
	lifecycle struct {
		PostStart execHook `json:"postStart"`
	}
	execHook struct {
		Exec command `json:"exec"`
	}
	command struct {
		Command []string `json:"command"`
	}
	kubeletProbe struct {
		HTTPGet          probeGet `json:"httpGet"`
		PeriodSeconds    int      `json:"periodSeconds"`
		TimeoutSeconds   int      `json:"timeoutSeconds"`
		FailureThreshold int      `json:"failureThreshold"`
	}
	probeGet struct {
		Path string `json:"path"`
		Port int    `json:"port"`
	}
	resources struct {
		Requests map[string]string `json:"requests"`
		Limits   map[string]string `json:"limits,omitempty"`
	}
	containerRules struct {
		AllowPrivilegeEscalation bool         `json:"allowPrivilegeEscalation"`
		Capabilities             capabilities `json:"capabilities"`
		ReadOnlyRootFilesystem   bool         `json:"readOnlyRootFilesystem"`
		RunAsGroup               int          `json:"runAsGroup"`
		RunAsNonRoot             bool         `json:"runAsNonRoot"`
		RunAsUser                int          `json:"runAsUser"`
		SeccompProfile           seccomp      `json:"seccompProfile"`
	}
	capabilities struct {
		Add  []string `json:"add,omitempty"`
		Drop []string `json:"drop"`
	}
	seccomp struct {
		Type string `json:"type"`
	}
	volumeMount struct {
		Name      string `json:"name"`
		MountPath string `json:"mountPath"`
		ReadOnly  bool   `json:"readOnly"`
	}
	volume struct {
		Name      string    `json:"name"`
		Projected projected `json:"projected"`
	}
	projected struct {
		Sources []source `json:"sources"`
	}
	source struct {
		ServiceAccountToken *tokenSource  `json:"serviceAccountToken,omitempty"`
		ConfigMap           *configSource `json:"configMap,omitempty"`
	}
	tokenSource struct {
		Audience          string `json:"audience"`
		ExpirationSeconds int    `json:"expirationSeconds"`
		Path              string `json:"path"`
	}
	configSource struct {
		Name  string    `json:"name"`
		Items []keyPath `json:"items"`
	}
	keyPath struct {
		Key  string `json:"key"`
		Path string `json:"path"`
	}
)

// ProxyBinary is where the proxy's image has its program.
const ProxyBinary = "/tulle-proxy"

// proxy is the container beside the application.
func (c Config) proxy(s settings, workload string, probes []probe) container {
	p := container{
		Name: cluster.ProxyContainer, Image: c.Image, ImagePullPolicy: c.PullPolicy,
		Args: c.arguments(s, workload, probes),
		Env: []env{
			{Name: "POD_NAME", ValueFrom: &valueFrom{fieldRef{"metadata.name"}}},
			{Name: "POD_NAMESPACE", ValueFrom: &valueFrom{fieldRef{"metadata.namespace"}}},
			{Name: "POD_ACCOUNT", ValueFrom: &valueFrom{fieldRef{"spec.serviceAccountName"}}},
		},
		Ports: []port{{"tulle-admin", mesh.AdminPort}},
		// The pod's other containers start once this one has succeeded, in at most
		// a second after the proxy is ready. It gives up after two minutes, and is
		// started anew.
		StartupProbe:             &kubeletProbe{HTTPGet: probeGet{"/ready", mesh.AdminPort}, PeriodSeconds: 1, TimeoutSeconds: 1, FailureThreshold: 120},
		LivenessProbe:            &kubeletProbe{HTTPGet: probeGet{"/live", mesh.AdminPort}, PeriodSeconds: 10, TimeoutSeconds: 5, FailureThreshold: 6},
		Resources:                s.resources.container(),
		SecurityContext:          unprivileged(mesh.ProxyUID),
		TerminationMessagePolicy: "FallbackToLogsOnError",
		VolumeMounts:             []volumeMount{{cluster.IdentityVolume, cluster.IdentityDir, true}},
	}
	if len(s.skipInbound) > 0 {
		p.Env = append(p.Env, env{Name: cluster.DirectPortsVariable, Value: portList(s.skipInbound)})
	}
	if c.Native {
		p.RestartPolicy = "Always"
		// Only by the redirect does the kubelet get an answer there: nothing else of
		// the pod runs before its traffic is known to be redirected.
		p.Args = append(p.Args, "-redirect-probe")
		p.StartupProbe.HTTPGet.Port = mesh.RedirectProbePort
		return p
	}
	// Containers start in order, each after the hook of the one before.
	p.Lifecycle = &lifecycle{PostStart: execHook{command{[]string{ProxyBinary, "-await-ready"}}}}
	return p
}

// arguments of the proxy; the kubelet fills in what is written $(NAME).
func (c Config) arguments(s settings, workload string, probes []probe) []string {
	networks := make([]string, 0, len(c.networks()))
	for _, n := range c.networks() {
		networks = append(networks, n.String())
	}
	redirect := mesh.RedirectNetfilter
	if c.CNI {
		redirect = mesh.RedirectCNI
	}
	args := []string{
		"-workload=$(POD_NAME)",
		"-service=" + workload + ".$(POD_NAMESPACE)",
		"-identity=spiffe://" + c.TrustDomain + "/ns/$(POD_NAMESPACE)/sa/$(POD_ACCOUNT)",
		"-control=" + c.Control,
		"-roots-file=" + cluster.IdentityDir + "/" + cluster.RootsFile,
		"-token-file=" + cluster.IdentityDir + "/" + cluster.TokenFile,
		"-networks=" + strings.Join(networks, ","),
		"-redirect=" + redirect,
		"-policy=ask",
		"-log-level=" + s.logLevel,
	}
	for _, p := range probes {
		args = append(args, p.argument())
	}
	return args
}

// redirect is the init container that sends the pod's traffic into the proxy.
func (c Config) redirect(s settings) container {
	rules := unprivileged(0)
	rules.RunAsNonRoot = false
	rules.Capabilities.Add = []string{"NET_ADMIN"}
	return container{
		Name: cluster.InitContainer, Image: c.InitImage, ImagePullPolicy: c.PullPolicy,
		Args: []string{
			"init",
			fmt.Sprintf("-skip-inbound-ports=%s", portList(s.skipInbound)),
			fmt.Sprintf("-skip-outbound-ports=%s", portList(s.skipOutbound)),
		},
		Resources:                Resources{CPURequest: "10m", MemoryRequest: "16Mi", MemoryLimit: "64Mi"}.container(),
		SecurityContext:          rules,
		TerminationMessagePolicy: "FallbackToLogsOnError",
	}
}

// unprivileged is what Pod Security's level "restricted" asks for, and more.
func unprivileged(uid int) containerRules {
	return containerRules{
		Capabilities: capabilities{Drop: []string{"ALL"}}, ReadOnlyRootFilesystem: true,
		RunAsGroup: uid, RunAsNonRoot: true, RunAsUser: uid, SeccompProfile: seccomp{"RuntimeDefault"},
	}
}

func (r Resources) container() resources {
	set := func(cpu, memory string) map[string]string {
		m := map[string]string{}
		if cpu != "" {
			m["cpu"] = cpu
		}
		if memory != "" {
			m["memory"] = memory
		}
		return m
	}
	return resources{Requests: set(r.CPURequest, r.MemoryRequest), Limits: set(r.CPULimit, r.MemoryLimit)}
}

// identityVolume has what proves the pod to the control plane, and the control
// plane to the pod. The kubelet keeps both fresh.
func identityVolume() volume {
	return volume{Name: cluster.IdentityVolume, Projected: projected{Sources: []source{
		{ServiceAccountToken: &tokenSource{cluster.TokenAudience, cluster.TokenSeconds, cluster.TokenFile}},
		{ConfigMap: &configSource{cluster.RootsConfigMap, []keyPath{{cluster.RootsKey, cluster.RootsFile}}}},
	}}}
}
