package policy

import rego.v1

# Every part of the guest must be affirmed; a warning is not enough.
default allow := false

allow if {
	count(input.submods) > 0
	every _, submod in input.submods {
		submod["ear.status"] == "affirming"
	}
}
