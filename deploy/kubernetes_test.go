package deploy

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// object is as much of a manifest as is checked here.
type object struct {
	Kind     string
	Metadata struct{ Name string }
	Data     map[string]string
	Spec     struct {
		Replicas int
		Selector yaml.Node
		Ports    []struct {
			TargetPort string `yaml:"targetPort"`
		}
		PodSelector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		} `yaml:"podSelector"`
		PolicyTypes []string `yaml:"policyTypes"`
		Ingress     []struct {
			From  []yaml.Node
			Ports []struct{ Port string }
		}
		ScaleTargetRef struct{ Kind, Name string } `yaml:"scaleTargetRef"`
		Template       struct {
			Metadata struct{ Labels map[string]string }
			Spec     podSpec
		}
		VolumeClaims []struct {
			Metadata struct{ Name string }
		} `yaml:"volumeClaimTemplates"`
	}
}

type podSpec struct {
	Grace           int `yaml:"terminationGracePeriodSeconds"`
	SecurityContext struct {
		RunAsNonRoot bool `yaml:"runAsNonRoot"`
		RunAsUser    int  `yaml:"runAsUser"`
	} `yaml:"securityContext"`
	Containers []struct {
		Image   string
		EnvFrom []struct {
			ConfigMapRef struct{ Name string } `yaml:"configMapRef"`
		} `yaml:"envFrom"`
		Env   []struct{ Name, Value string }
		Ports []struct {
			Name          string
			ContainerPort int `yaml:"containerPort"`
		}
		Liveness  probe `yaml:"livenessProbe"`
		Readiness probe `yaml:"readinessProbe"`
		Startup   probe `yaml:"startupProbe"`
		Resources struct{ Requests, Limits map[string]string }
		Security  struct {
			Escalation   *bool                   `yaml:"allowPrivilegeEscalation"`
			ReadOnly     bool                    `yaml:"readOnlyRootFilesystem"`
			Capabilities struct{ Drop []string } `yaml:"capabilities"`
		} `yaml:"securityContext"`
		Mounts []struct {
			Name      string
			MountPath string `yaml:"mountPath"`
		} `yaml:"volumeMounts"`
	}
	Volumes []struct{ Name string }
}

type probe struct {
	Get struct{ Path, Port string } `yaml:"httpGet"`
}

func objects(text string) (out []object, err error) {
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var o object
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
}

func checkKubernetes(t *testing.T, text string) (problems []string) {
	t.Helper()
	all, err := objects(text)
	if err != nil {
		return []string{err.Error()}
	}
	configs := map[string]map[string]string{}
	pods := map[string]map[string]string{} // labels by name of the workload
	for _, o := range all {
		if o.Kind == "ConfigMap" {
			configs[o.Metadata.Name] = o.Data
		}
	}
	for _, o := range all {
		if len(o.Spec.Template.Spec.Containers) > 0 {
			pods[o.Metadata.Name] = o.Spec.Template.Metadata.Labels
			problems = append(problems, checkPod(t, &o, configs)...)
		}
	}
	for name, labels := range pods {
		if !guarded(labels, all) {
			problems = append(problems, name+": has no NetworkPolicy that says who may reach its admin listener, which has no authentication")
		}
	}
	for _, o := range all {
		bad := func(format string, args ...any) {
			problems = append(problems, o.Kind+" "+o.Metadata.Name+": "+fmt.Sprintf(format, args...))
		}
		if sel := selectorOf(&o); sel != nil && !selectsOne(sel, pods) {
			bad("selects %v, which no pod has", sel)
		}
		if ref := o.Spec.ScaleTargetRef; o.Kind == "HorizontalPodAutoscaler" && pods[ref.Name] == nil {
			bad("scales %s, which is not here", ref.Name)
		}
		for _, p := range o.Spec.Ports {
			if o.Kind == "Service" && p.TargetPort != "http" {
				bad("leads to the port %s; the admin listener is not for services", p.TargetPort)
			}
		}
	}
	return problems
}

// selectorOf is what an object selects pods by: labels, or labels under
// matchLabels; nil for one that selects none.
func selectorOf(o *object) map[string]string {
	if o.Kind == "NetworkPolicy" {
		return o.Spec.PodSelector.MatchLabels
	}
	var long struct {
		MatchLabels map[string]string `yaml:"matchLabels"`
	}
	if err := o.Spec.Selector.Decode(&long); err == nil && long.MatchLabels != nil {
		return long.MatchLabels
	}
	var short map[string]string
	if err := o.Spec.Selector.Decode(&short); err == nil && len(short) > 0 {
		return short
	}
	return nil
}

func selectsOne(selector map[string]string, pods map[string]map[string]string) bool {
	for _, labels := range pods {
		if selects(selector, labels) {
			return true
		}
	}
	return false
}

func selects(selector, labels map[string]string) bool {
	missing := maps.Clone(selector)
	maps.DeleteFunc(missing, func(k, v string) bool { return labels[k] == v })
	return len(missing) == 0
}

// guarded says whether policies keep all but those they name from the admin listener of
// a pod, whose manifest opens it to the network, as checkPod sees to. What no policy
// selects is open; of those that do, each adds to who comes in.
func guarded(labels map[string]string, all []object) (found bool) {
	for _, o := range all {
		if o.Kind != "NetworkPolicy" || !slices.Contains(o.Spec.PolicyTypes, "Ingress") || !selects(selectorOf(&o), labels) {
			continue
		}
		found = true
		for _, rule := range o.Spec.Ingress {
			open := len(rule.Ports) == 0 // that is all of them
			for _, p := range rule.Ports {
				open = open || p.Port != "http"
			}
			if open && len(rule.From) == 0 {
				return false
			}
		}
	}
	return found
}

func checkPod(t *testing.T, o *object, configs map[string]map[string]string) (problems []string) {
	bad := func(format string, args ...any) {
		problems = append(problems, o.Metadata.Name+": "+fmt.Sprintf(format, args...))
	}
	defaults := settings(t)
	pod := &o.Spec.Template.Spec
	c := &pod.Containers[0]
	env := map[string]string{}
	for _, from := range c.EnvFrom {
		maps.Copy(env, configs[from.ConfigMapRef.Name])
	}
	for _, v := range c.Env {
		env[v.Name] = v.Value
	}
	effective := maps.Clone(defaults)
	for name, value := range env {
		if _, ok := defaults[name]; !ok && !slices.Contains(runtimeVariables, name) {
			bad("%s is no setting of edge", name)
		}
		effective[name] = value
	}
	if stop := duration(t, effective["PRESTOP_DELAY"]) + duration(t, effective["SHUTDOWN_TIMEOUT"]); time.Duration(pod.Grace)*time.Second <= stop {
		bad("is killed after %d s; a stop may take %s", pod.Grace, stop)
	}
	if lim, limit := memory(env["GOMEMLIMIT"]), memory(strings.TrimSuffix(c.Resources.Limits["memory"], "i")); lim == 0 || lim >= limit {
		bad("GOMEMLIMIT %s must be below the memory limit %s", env["GOMEMLIMIT"], c.Resources.Limits["memory"])
	}
	ports := map[string]string{}
	for _, p := range c.Ports {
		ports[p.Name] = fmt.Sprint(p.ContainerPort)
	}
	if ports["http"] != effective["SERVER_PORT"] || ports["admin"] != effective["ADMIN_PORT"] || effective["ADMIN_HOST"] != "0.0.0.0" {
		bad("has the ports %v and the admin host %q; edge listens on %s and %s", ports, effective["ADMIN_HOST"], effective["SERVER_PORT"], effective["ADMIN_PORT"])
	}
	for name, p := range map[string]struct {
		probe
		path, port string
	}{"liveness": {c.Liveness, "/health", "admin"}, "readiness": {c.Readiness, "/ready", "http"}, "startup": {c.Startup, "/health", "http"}} {
		if p.Get.Path != p.path || p.Get.Port != p.port {
			bad("%s asks %s on %s; want %s on %s", name, p.Get.Path, p.Get.Port, p.path, p.port)
		}
	}
	if !pod.SecurityContext.RunAsNonRoot || c.Security.Escalation == nil || *c.Security.Escalation || !c.Security.ReadOnly || !slices.Equal(c.Security.Capabilities.Drop, []string{"ALL"}) {
		bad("may be root, gain privileges or write to its root")
	}
	target, _ := strings.CutPrefix(c.Image, "edge:")
	all, _ := stages(read(t, dockerfile))
	i := slices.IndexFunc(all, func(s stage) bool { return s.name == target })
	if i < 0 {
		bad("runs %s, which no stage of the Dockerfile makes", c.Image)
		return problems
	}
	if user := all[i].last("USER"); user != fmt.Sprintf("%[1]d:%[1]d", pod.SecurityContext.RunAsUser) {
		bad("runs as %d; the image's user is %s", pod.SecurityContext.RunAsUser, user)
	}
	volumes := map[string]bool{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = true
	}
	for _, v := range o.Spec.VolumeClaims {
		volumes[v.Metadata.Name] = true
	}
	paths := map[string]bool{}
	for _, m := range c.Mounts {
		paths[m.MountPath] = true
		if !volumes[m.Name] {
			bad("mounts %s, which is no volume", m.Name)
		}
	}
	if env["EMBEDDED"] == "true" && (o.Kind != "StatefulSet" || o.Spec.Replicas != 1 || !paths[env["DATA_DIR"]] || !paths["/tmp"]) {
		bad("embedded mode is one replica with a volume on DATA_DIR and a /tmp")
	}
	return problems
}

func TestKubernetes(t *testing.T) {
	pods := 0
	for _, name := range files(t, "deploy/kubernetes", ".yaml") {
		text := read(t, name)
		pods += strings.Count(text, "image: edge:")
		for _, p := range checkKubernetes(t, text) {
			t.Errorf("%s: %s", name, p)
		}
	}
	if pods != 3 {
		t.Errorf("there are %d workloads; want ingest, store and embedded", pods)
	}
}

func TestKubernetesIsRefused(t *testing.T) {
	f := func(name, old, new, want string) {
		t.Helper()
		oneProblem(t, checkKubernetes(t, mutate(t, read(t, "deploy/kubernetes/"+name), old, new)), want)
	}
	f("edge.yaml", "KAFKA_BROKERS:", "KAFKA_BROKER:", "KAFKA_BROKER is no setting")
	f("edge.yaml", "name: ROLES", "name: ROLE", "ROLE is no setting")
	f("edge.yaml", "image: edge:slim", "image: edge:slimmer", "no stage of the Dockerfile")
	f("edge.yaml", "terminationGracePeriodSeconds: 45", "terminationGracePeriodSeconds: 30", "a stop may take 30s")
	f("edge.yaml", "path: /health, port: admin}, periodSeconds: 10", "path: /ready, port: admin}, periodSeconds: 10", "liveness asks /ready")
	f("edge.yaml", "path: /health, port: admin}", "path: /health, port: http}", "liveness asks /health on http")
	f("edge.yaml", "containerPort: 9091", "containerPort: 9090", "edge listens on")
	f("edge.yaml", "limits: {memory: 2Gi}", "limits: {memory: 1Gi}", "below the memory limit")
	f("edge.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "write to its root")
	f("edge.yaml", "runAsUser: 65532", "runAsUser: 1000", "the image's user is")
	f("edge.yaml", "  selector: {app: edge, role: ingest}", "  selector: {app: edge, role: front}", "which no pod has")
	f("edge.yaml", "targetPort: http", "targetPort: admin", "not for services")
	f("edge.yaml", "kind: Deployment, name: edge-ingest", "kind: Deployment, name: edge", "scales edge")
	const scrapes = "    - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]\n"
	for _, name := range []string{"edge.yaml", "embedded.yaml"} {
		f(name, "kind: NetworkPolicy", "kind: CiliumNetworkPolicy", "has no NetworkPolicy")
		f(name, "policyTypes: [Ingress]", "policyTypes: [Egress]", "has no NetworkPolicy")
		f(name, scrapes+"      ports:", "    - ports:", "has no NetworkPolicy")
		f(name, "- ports: [{port: http}]", "- ports: [{port: http}, {port: 9091}]", "has no NetworkPolicy")
	}
	f("edge.yaml", "podSelector: {matchLabels: {app: edge}}", "podSelector: {matchLabels: {app: edge, role: store}}", "edge-ingest: has no NetworkPolicy")
	f("embedded.yaml", "podSelector: {matchLabels: {app: edge-embedded}}", "podSelector: {matchLabels: {app: edge}}", "which no pod has")
	f("embedded.yaml", "replicas: 1", "replicas: 2", "one replica")
	f("embedded.yaml", "mountPath: /data", "mountPath: /var/lib/edge", "volume on DATA_DIR")
	f("embedded.yaml", "{name: data, mountPath", "{name: store, mountPath", "mounts store")
}
