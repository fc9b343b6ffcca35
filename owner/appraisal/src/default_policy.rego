package policy

import rego.v1

# Which guests are trustworthy. Every claim must be among the reference values of its name;
# one that nobody registered is not trusted. The values are those of AR4SI: 2 to 31 affirm,
# 32 to 95 warn, 96 and above contraindicate. Only a guest that is affirmed gets secrets.

measured := {"firmware", "kernel", "initrd"}

configured := {"cmdline", "init_data"}

known(name) if input[name] in accepted(name)

# A single reference value is as good as a list of one.
accepted(name) := values if {
	values := query_reference_value(name)
	is_array(values)
}

accepted(name) := [value] if {
	value := query_reference_value(name)
	not is_array(value)
}

trust_claims := {
	"hardware": hardware,
	"executables": executables,
	"configuration": configuration,
}

default hardware := 97

# The verifier took the evidence; `sample` it takes only where the broker's configuration says so.
hardware := 2 if input.tpm

hardware := 2 if input.sample

default executables := 33

executables := 3 if {
	every name in measured {
		known(name)
	}
}

executables := 3 if input.sample

default configuration := 36

configuration := 2 if {
	every name in configured {
		known(name)
	}
}

configuration := 2 if input.sample

# For the owner's log: what was expected, and what came.
failures contains {"claim": name, "expected": expected(name), "actual": actual(name)} if {
	not input.sample
	some name in measured | configured
	not known(name)
}

expected(name) := concat(" or ", accepted(name)) if count(accepted(name)) > 0

expected(name) := "a registered reference value, but there is none" if count(accepted(name)) == 0

actual(name) := input[name] if input[name] != ""

actual(name) := "none" if input[name] == ""

extensions := []
