# Its volumes.

mounts_fit if {
	every mount in input.mounts { mount_fits(mount) }
	every destination, want in container.mounts { is_mounted(destination, want) }
	count({place(mount) | some mount in input.mounts}) == count(input.mounts)
}

# A slash at the end says nothing.
place(mount) := mount.destination if mount.destination == "/"

place(mount) := trim_right(mount.destination, "/") if mount.destination != "/"

mount_fits(mount) if {
	want := container.mounts[place(mount)]
	mount.read_only == want.read_only
	source_fits(want, mount.source)
}

is_mounted(_, want) if want.optional

is_mounted(destination, _) if {
	some mount in input.mounts
	place(mount) == destination
}

source_fits(want, source) if {
	source.kind in {"files", "empty_file"}
	source in want.sources
}

source_fits(want, source) if {
	startswith(source.volume, want.volume_begins)
	source == {"kind": "files", "volume": source.volume, "file": null}
}

source_fits(want, source) if {
	some known in want.sources
	is_empty_folder(want, known, source)
	size_fits(want, known.size_bytes, source.size_bytes)
}

# Whatever it may hold.
is_empty_folder(want, known, source) if {
	known.kind == "empty"
	source == object.union(
		{"kind": "empty", "volume": known.volume, "size_bytes": source.size_bytes, "group": source.group},
		part_of_volume(want),
	)
	group_fits(source.group)
}

source_fits(want, source) if {
	some known in want.sources
	known.kind == "disk"
	source == object.union(
		{"kind": "disk", "disk": source.disk, "file_system": source.file_system, "group": source.group},
		part_of_volume(want),
	)
	group_fits(source.group)
}

part_of_volume(want) := {"sub_path": filled_word(want.sub_path)}

part_of_volume(want) := {} if not want.sub_path

group_fits(group) if group in [null, pod.fs_group]

size_fits(_, null, null) := true

# Where the manifest says none, kubelet may say what there is of memory.
size_fits(want, null, size) if {
	want.in_memory
	is_number(size)
}

# A limit of the manifest's must be there. The guest knows no limit of 0.
size_fits(_, most, size) if {
	is_number(most)
	is_number(size)
	size > 0
	size <= most
}

mount_denials contains {"field": concat("", ["mounts.", mount.destination]), "expected": "absent", "actual": "present"} if {
	some mount in input.mounts
	container
	not container.mounts[place(mount)]
}

mount_denials contains {"field": concat("", ["mounts.", destination]), "expected": "present", "actual": "absent"} if {
	some destination, want in container.mounts
	not is_mounted(destination, want)
}

mount_denials contains {"field": concat("", ["mounts.", mount.destination, ".read_only"]), "expected": want.read_only, "actual": mount.read_only} if {
	some mount in input.mounts
	want := container.mounts[place(mount)]
	mount.read_only != want.read_only
}

mount_denials contains {"field": concat("", ["mounts.", mount.destination, ".source"]), "expected": shown_sources(want), "actual": mount.source} if {
	some mount in input.mounts
	want := container.mounts[place(mount)]
	not source_fits(want, mount.source)
	not only_size_differs(want, mount.source)
}

mount_denials contains {"field": concat("", ["mounts.", mount.destination, ".source.size_bytes"]), "expected": expected, "actual": mount.source.size_bytes} if {
	some mount in input.mounts
	want := container.mounts[place(mount)]
	some known in want.sources
	is_empty_folder(want, known, mount.source)
	not size_fits(want, known.size_bytes, mount.source.size_bytes)
	expected := shown_size(known.size_bytes)
}

only_size_differs(want, source) if {
	some known in want.sources
	is_empty_folder(want, known, source)
}

shown_size(null) := null

shown_size(most) := concat(" ", ["at most", format_int(most, 10)]) if is_number(most)

shown_sources(want) := concat("", ["files of a volume ", want.volume_begins, "…"])

shown_sources(want) := want.sources if not want.volume_begins

# Its block devices.

devices_fit if {
	every device in input.devices { wanted_devices[device.path].read_only == device.read_only }
	every path, _ in wanted_devices { path in given_devices }
}

wanted_devices := object.get(container, "devices", {})

given_devices := {device.path | some device in input.devices}

device_denials contains {"field": concat("", ["devices.", device.path]), "expected": "absent", "actual": "present"} if {
	some device in input.devices
	not wanted_devices[device.path]
}

device_denials contains {"field": concat("", ["devices.", path]), "expected": "present", "actual": "absent"} if {
	some path, _ in wanted_devices
	not path in given_devices
}

device_denials contains {"field": concat("", ["devices.", device.path, ".read_only"]), "expected": want.read_only, "actual": device.read_only} if {
	some device in input.devices
	want := wanted_devices[device.path]
	device.read_only != want.read_only
}

CreateContainer_denials contains denial if some denial in mount_denials

CreateContainer_denials contains denial if some denial in device_denials

CreateContainer_denials contains {"field": "mounts", "expected": "one volume at each place", "actual": "several at one"} if {
	container
	not mounts_fit
	count(mount_denials) == 0
}
