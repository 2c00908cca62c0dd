package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"strings"
)

// secret never shows itself.
type secret string

func (s secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// secrets is a list of secret.
type secrets []string

func (s secrets) String() string {
	if len(s) == 0 {
		return ""
	}
	return "***"
}

func isSecret(t reflect.Type) bool {
	return t == reflect.TypeFor[secret]() || t == reflect.TypeFor[secrets]()
}

// eachSecret calls f for every setting that holds a secret.
func eachSecret(f func(name string, list bool)) {
	t := reflect.TypeFor[config]()
	for i := range t.NumField() {
		if field := t.Field(i); isSecret(field.Type) {
			f(field.Tag.Get("env"), field.Type == reflect.TypeFor[secrets]())
		}
	}
}

// withSecretFiles returns environ with each secret NAME that NAME_FILE names a
// file of, as Docker and Kubernetes mount them: an environment shows in
// inspections and core dumps, and every child inherits it.
func withSecretFiles(environ map[string]string) (map[string]string, error) {
	environ = maps.Clone(environ)
	var errs []error
	eachSecret(func(name string, list bool) {
		path := environ[name+"_FILE"]
		if path == "" {
			return
		}
		if environ[name] != "" {
			errs = append(errs, fmt.Errorf("%s and %s_FILE are both set; set one of them", name, name))
			return
		}
		text, err := os.ReadFile(path)
		value := strings.TrimRight(string(text), "\r\n") // editors end a file with one
		if list {
			value = strings.Join(strings.Fields(value), ",") // a key a line, too
		}
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s_FILE: %w", name, err))
		case value == "":
			errs = append(errs, fmt.Errorf("%s_FILE is %s, which is empty", name, path))
		default:
			environ[name] = value
		}
	})
	return environ, errors.Join(errs...)
}
