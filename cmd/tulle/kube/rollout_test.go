package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodTrouble(t *testing.T) {
	waiting := func(message string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: message}}
	}
	ended := func(message string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Message: message}}
	}
	for _, tt := range []struct {
		what   string
		status corev1.PodStatus
		want   string
	}{
		{"nothing", corev1.PodStatus{}, ""},
		{"it is being created", corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "app", State: waiting("")}}}, ""},
		{"no image", corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "app", State: waiting("no such image")}}}, "pod web-1, container app: no such image"},
		{"it ended, and waits", corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{
			{Name: "app", State: waiting("back-off 40s"), LastTerminationState: ended("no bpffs is mounted\n")},
		}}, "pod web-1, container app: no bpffs is mounted"},
		{"it ended without a word", corev1.PodStatus{InitContainerStatuses: []corev1.ContainerStatus{
			{Name: "first", State: waiting("back-off 40s"), LastTerminationState: ended("")},
		}}, "pod web-1, container first: back-off 40s"},
		{"it ended once, and runs", corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{
			{Name: "app", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, LastTerminationState: ended("once")},
		}}, ""},
		{"no room", corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/2 nodes are available"},
		}}, "pod web-1: 0/2 nodes are available"},
	} {
		if got := podTrouble(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web-1"}, Status: tt.status}); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
}
