package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/tulle-mesh/tulle/cni/plugin"
)

// object is JSON whose values stay as they were written.
type object map[string]json.RawMessage

// errNotYet is for a file that holds no configuration (yet).
var errNotYet = errors.New("not a network configuration")

// chain returns the network configuration conf with our plugin, asking socket,
// as the last of its chain, and whether that is a change. A configuration of a
// single plugin becomes a list.
func chain(conf []byte, socket string) (out []byte, changed bool, err error) {
	list, err := parseList(conf)
	if err != nil {
		return nil, false, err
	}
	plugins, err := list.plugins()
	if err != nil {
		return nil, false, err
	}
	ours, err := json.Marshal(map[string]any{
		"type":         plugin.Name,
		"socket":       socket,
		"capabilities": map[string]bool{plugin.Annotations: true},
	})
	if err != nil {
		return nil, false, err
	}
	others := slices.DeleteFunc(slices.Clone(plugins), isOurs)
	if len(others) == 0 {
		return nil, false, errNotYet
	}
	wanted := append(others, ours)
	if slices.EqualFunc(plugins, wanted, sameJSON) {
		return conf, false, nil
	}
	out, err = list.with(wanted)
	return out, true, err
}

// unchain takes our plugin out of a configuration.
func unchain(conf []byte) (out []byte, changed bool, err error) {
	list, err := parseList(conf)
	if err != nil {
		return nil, false, err
	}
	plugins, err := list.plugins()
	if err != nil {
		return nil, false, err
	}
	others := slices.DeleteFunc(slices.Clone(plugins), isOurs)
	if len(others) == len(plugins) {
		return conf, false, nil
	}
	out, err = list.with(others)
	return out, true, err
}

// parseList reads a configuration, and makes a list of one that has a single
// plugin.
func parseList(conf []byte) (object, error) {
	var o object
	if err := json.Unmarshal(conf, &o); err != nil {
		return nil, errors.Join(errNotYet, err)
	}
	if _, ok := o["plugins"]; ok {
		return o, nil
	}
	if _, ok := o["type"]; !ok {
		return nil, errNotYet
	}
	list := object{}
	for _, key := range []string{"cniVersion", "name"} {
		if value, ok := o[key]; ok {
			list[key] = value
		}
	}
	single := maps.Clone(o)
	delete(single, "cniVersion")
	delete(single, "name")
	raw, err := json.Marshal([]object{single})
	list["plugins"] = raw
	return list, err
}

func (o object) plugins() ([]json.RawMessage, error) {
	var plugins []json.RawMessage
	if err := json.Unmarshal(o["plugins"], &plugins); err != nil {
		return nil, fmt.Errorf("plugins: %w", err)
	}
	return plugins, nil
}

// with returns the list, for humans to read, with other plugins.
func (o object) with(plugins []json.RawMessage) ([]byte, error) {
	raw, err := json.Marshal(plugins)
	if err != nil {
		return nil, err
	}
	list := maps.Clone(o)
	list["plugins"] = raw
	out, err := json.MarshalIndent(list, "", "  ")
	return append(out, '\n'), err
}

func isOurs(raw json.RawMessage) bool {
	var p struct {
		Type string `json:"type"`
	}
	return json.Unmarshal(raw, &p) == nil && p.Type == plugin.Name
}

// sameJSON compares documents, whatever their spacing.
func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
