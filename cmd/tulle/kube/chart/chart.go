// Package chart is what Tulle consists of on Kubernetes: one Helm chart, which
// Helm can install, and which Render turns into the same objects without Helm.
//
// Of Helm's template language it uses what is in text/template and the few
// functions below, so that there is one source and not two.
package chart

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"reflect"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

//go:embed files
var files embed.FS

// Files is the chart as Helm wants it.
func Files() fs.FS {
	below, err := fs.Sub(files, "files")
	if err != nil {
		panic(err) // it is embedded
	}
	return below
}

// Values are what can be set, as in values.yaml.
type Values map[string]any

// Defaults are the values that the chart comes with.
func Defaults() (Values, error) {
	content, err := fs.ReadFile(Files(), "values.yaml")
	if err != nil {
		return nil, err
	}
	return ParseValues(content)
}

// ParseValues reads a file of values.
func ParseValues(content []byte) (Values, error) {
	v := Values{}
	return v, yaml.UnmarshalStrict(content, &v)
}

// Merge lays other values over v. A key that the chart does not know is an
// error, as is a value of another kind than the one it replaces.
func (v Values) Merge(other Values) error { return merge(v, other, "") }

func merge(into, from map[string]any, prefix string) error {
	var errs []error
	for key, value := range from {
		old, known := into[key]
		if !known && !strings.HasSuffix(strings.TrimSuffix(prefix, "."), "resources") && !strings.Contains(prefix, "resources.") {
			errs = append(errs, fmt.Errorf("no such value: %s%s", prefix, key))
			continue
		}
		section, isSection := old.(map[string]any)
		values, areValues := value.(map[string]any)
		switch {
		case isSection && areValues:
			errs = append(errs, merge(section, values, prefix+key+"."))
		case known && isSection != areValues, known && !isSection && fmt.Sprintf("%T", old) != fmt.Sprintf("%T", value):
			errs = append(errs, fmt.Errorf("value %s%s: %v is of another kind than %v", prefix, key, value, old))
		default:
			into[key] = value
		}
	}
	return errors.Join(errs...)
}

// Beside returns what in v is not as in other, which has the same keys.
func (v Values) Beside(other Values) Values { return beside(v, other) }

func beside(v, other map[string]any) map[string]any {
	rest := map[string]any{}
	for key, value := range v {
		section, ok := value.(map[string]any)
		old, _ := other[key].(map[string]any)
		switch {
		case ok:
			if r := beside(section, old); len(r) > 0 {
				rest[key] = r
			}
		case !reflect.DeepEqual(value, other[key]):
			rest[key] = value
		}
	}
	return rest
}

// Set reads one KEY.KEY=VALUE, where VALUE is a number, true, false, or text.
func (v Values) Set(assignment string) error {
	key, text, ok := strings.Cut(assignment, "=")
	if !ok || key == "" {
		return fmt.Errorf("%q: must be KEY=VALUE", assignment)
	}
	var value any
	switch old := v.at(key).(type) {
	case string, nil:
		value = text
	default:
		if err := yaml.Unmarshal([]byte(text), &value); err != nil {
			return fmt.Errorf("value %s: %q is of another kind than %v", key, text, old)
		}
	}
	parts := strings.Split(key, ".")
	for i := len(parts) - 1; i >= 0; i-- {
		value = map[string]any{parts[i]: value}
	}
	return v.Merge(value.(map[string]any))
}

// at returns the value of a dotted key, nil if there is none.
func (v Values) at(key string) any {
	var value any = map[string]any(v)
	for part := range strings.SplitSeq(key, ".") {
		section, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = section[part]
	}
	return value
}

// Version is the chart's, which is that of all that it installs.
func Version() (string, error) {
	about, err := about()
	if err != nil {
		return "", err
	}
	version, _ := about["appVersion"].(string)
	return version, nil
}

func about() (map[string]any, error) {
	content, err := fs.ReadFile(Files(), "Chart.yaml")
	if err != nil {
		return nil, err
	}
	m := map[string]any{}
	return m, yaml.Unmarshal(content, &m)
}

// functions are those of Helm that the templates use.
var functions = template.FuncMap{
	"quote":  func(v any) (string, error) { return toJSON(fmt.Sprint(v)) },
	"toJson": toJSON,
	"int": func(v any) (int, error) {
		var n int
		_, err := fmt.Sscan(fmt.Sprint(v), &n)
		return n, err
	},
	"default": func(otherwise, v any) any {
		if v == nil || v == "" {
			return otherwise
		}
		return v
	},
}

func toJSON(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// Render returns the objects that the chart consists of in a namespace, as a
// stream of YAML.
func Render(namespace string, v Values) ([]byte, error) {
	about, err := about()
	if err != nil {
		return nil, err
	}
	data := map[string]any{
		"Values":  maps.Clone(v),
		"Release": map[string]any{"Namespace": namespace, "Name": "tulle"},
		"Chart":   map[string]any{"AppVersion": about["appVersion"]},
	}
	names, err := fs.Glob(Files(), "templates/*.yaml")
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, name := range names {
		t, err := template.New(path.Base(name)).Funcs(functions).Option("missingkey=error").ParseFS(Files(), name)
		if err != nil {
			return nil, err
		}
		var part bytes.Buffer
		if err := t.Execute(&part, data); err != nil {
			return nil, err
		}
		if text := strings.TrimSpace(part.String()); text != "" {
			fmt.Fprintf(&out, "---\n%s\n", text)
		}
	}
	return out.Bytes(), nil
}
