//! The device class that the environment asks for.

use wgpu_attention::DeviceClass;

/// `WGPU_ATTENTION_CLASS`; unset, the adapter's own class.
pub(crate) fn from_env() -> Option<DeviceClass> {
    match std::env::var("WGPU_ATTENTION_CLASS").ok()?.as_str() {
        "hardware" => Some(DeviceClass::Hardware),
        "software" => Some(DeviceClass::Software),
        other => panic!("WGPU_ATTENTION_CLASS is hardware or software, not {other:?}"),
    }
}
