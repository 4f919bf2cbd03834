package inject

import (
	"encoding/json"
	"slices"

	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// pod is what has to be read of a pod, or of a template of pods.
type pod struct {
	Metadata *metadata `json:"metadata"`
	Spec     struct {
		HostNetwork     bool                   `json:"hostNetwork"`
		OS              *struct{ Name string } `json:"os"`
		SecurityContext *securityContext       `json:"securityContext"`
		InitContainers  []podContainer         `json:"initContainers"`
		Containers      []podContainer         `json:"containers"`
		Volumes         []json.RawMessage      `json:"volumes"`
	} `json:"spec"`
}

type metadata struct {
	Name            string            `json:"name"`
	GenerateName    string            `json:"generateName"`
	Labels          map[string]string `json:"labels"`
	Annotations     map[string]string `json:"annotations"`
	OwnerReferences []owner           `json:"ownerReferences"`
}

type owner struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
	Controller bool   `json:"controller"`
}

type podContainer struct {
	Name            string           `json:"name"`
	RestartPolicy   string           `json:"restartPolicy"`
	SecurityContext *securityContext `json:"securityContext"`
	Ports           []podPort        `json:"ports"`
	LivenessProbe   *handler         `json:"livenessProbe"`
	ReadinessProbe  *handler         `json:"readinessProbe"`
	StartupProbe    *handler         `json:"startupProbe"`
	Lifecycle       *struct {
		PostStart *handler `json:"postStart"`
		PreStop   *handler `json:"preStop"`
	} `json:"lifecycle"`
}

type podPort struct {
	Name          string `json:"name"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
}

type securityContext struct {
	RunAsUser *int64 `json:"runAsUser"`
}

// has tells whether the pod has a container of a name, of whatever kind.
func (p *pod) has(name string) bool {
	is := func(c podContainer) bool { return c.Name == name }
	return slices.ContainsFunc(p.Spec.InitContainers, is) || slices.ContainsFunc(p.Spec.Containers, is)
}

func (p *pod) controller() owner {
	for _, o := range p.Metadata.OwnerReferences {
		if o.Controller {
			return o
		}
	}
	return owner{}
}

// runsAs tells whether a container would run as uid, as far as the pod says.
func (p *pod) runsAs(c podContainer, uid int64) bool {
	for _, s := range []*securityContext{c.SecurityContext, p.Spec.SecurityContext} {
		if s != nil && s.RunAsUser != nil {
			return *s.RunAsUser == uid
		}
	}
	return false
}

// all returns the containers, with the JSON pointer (RFC 6901) of each.
func (p *pod) all() map[string]podContainer {
	containers := make(map[string]podContainer)
	for i, c := range p.Spec.InitContainers {
		containers[pointer("/spec/initContainers", i)] = c
	}
	for i, c := range p.Spec.Containers {
		containers[pointer("/spec/containers", i)] = c
	}
	return containers
}

// workload names what the pod belongs to.
func (p *pod) workload() string {
	c := p.controller()
	name := p.Metadata.Name
	if name == "" {
		name = trimDash(p.Metadata.GenerateName)
	}
	return cluster.Owner(c.Kind, c.Name, p.Metadata.Labels[cluster.HashLabel], name)
}
