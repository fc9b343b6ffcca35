//! Images that an engine has left to the guest: CRI-O with `runtime_pull_image` says so by the root file system.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::Error;

/// The option of the mount that stands for a root file system: base64(JSON), as existing runtimes read it.
const OPTION: &str = "io.katacontainers.volume";
const LEFT: &str = "image_guest_pull";

/// What stands for a root file system.
#[derive(Deserialize)]
struct RootVolume {
    volume_type: String,
    /// The image's name.
    #[serde(default)]
    source: String,
}

/// The name of the image that the options of a root file system leave to the guest.
pub(crate) fn left_to_the_guest(options: &[String]) -> Result<Option<String>, Error> {
    let Some(value) =
        options.iter().find_map(|option| option.strip_prefix(OPTION).and_then(|rest| rest.strip_prefix('=')))
    else {
        return Ok(None);
    };
    let unreadable = |problem: String| Error::Root { option: OPTION, problem };
    let json = STANDARD.decode(value).map_err(|error| unreadable(error.to_string()))?;
    let volume: RootVolume = serde_json::from_slice(&json).map_err(|error| unreadable(error.to_string()))?;
    match volume.volume_type.as_str() {
        LEFT => Ok(Some(volume.source)),
        other => Err(unreadable(format!("expected a volume of the type {LEFT}, got {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Option<String>, Error> {
        left_to_the_guest(&["ro".into(), format!("{OPTION}={}", STANDARD.encode(json))])
    }

    #[test]
    fn an_image_is_left_to_the_guest_by_its_name() {
        let volume = r#"{"volume_type": "image_guest_pull", "source": "registry.example/app:1", "fs_type": "overlay_fs",
            "image_pull": {"metadata": {"io.kubernetes.cri-o.ContainerType": "container"}}}"#;
        assert_eq!(read(volume).unwrap().as_deref(), Some("registry.example/app:1"));
        assert_eq!(left_to_the_guest(&["lowerdir=/a".into()]).unwrap(), None);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for json in ["", "{", r#"{"volume_type": "image_raw_block", "source": "/x"}"#] {
            let refusal = read(json).unwrap_err().to_string();
            assert!(refusal.contains(OPTION), "{refusal}");
        }
        assert!(left_to_the_guest(&[format!("{OPTION}=%")]).is_err());
    }
}
