# Giving a volume its files.

volume := known if {
	some known in pod.volumes
	not known.begins
	known.name == input.volume
}

volume := known if {
	not is_named_volume
	some known in pod.volumes
	known.begins
	startswith(input.volume, known.name)
}

is_named_volume if {
	some known in pod.volumes
	not known.begins
	known.name == input.volume
}

files_fit if volume.files == null

files_fit if {
	every file in input.files { file_fits(file) }
	every path, digest in volume.files { file_is_there(path, digest) }
}

file_fits(file) if volume.files[file.path] == null

file_fits(file) if volume.files[file.path] == file.sha256

file_is_there(_, null) := true

file_is_there(path, _) if path in {file.path | some file in input.files}

WriteVolume_denials contains {"field": "volume", "expected": names, "actual": input.volume} if {
	not volume
	names := [known.name | some known in pod.volumes]
}

WriteVolume_denials contains {"field": "group", "expected": pod.fs_group, "actual": input.group} if not group_fits(input.group)

WriteVolume_denials contains {"field": concat("", ["files.", file.path]), "expected": "absent", "actual": "present"} if {
	volume.files != null
	some file in input.files
	not file.path in object.keys(volume.files)
}

WriteVolume_denials contains {"field": concat("", ["files.", file.path]), "expected": "the manifest's content", "actual": "other content"} if {
	some file in input.files
	file.path in object.keys(volume.files)
	not file_fits(file)
}

WriteVolume_denials contains {"field": concat("", ["files.", path]), "expected": "present", "actual": "absent"} if {
	some path, digest in volume.files
	not file_is_there(path, digest)
}
