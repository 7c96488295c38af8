//! Reading results back.

use crate::error::DownloadError;
use futures_intrusive::channel::shared;

/// A copy of a buffer on its way to the host.
#[derive(Debug)]
pub struct Download {
    staging: wgpu::Buffer,
    bytes: u64,
    mapped: shared::OneshotReceiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Download {
    /// Records a copy of `source`, whose buffer has `COPY_SRC`, and maps it as soon as `encoder` is submitted
    /// and done.
    pub fn encode(
        device: &wgpu::Device,
        encoder: &mut wgpu::CommandEncoder,
        source: wgpu::BufferSlice<'_>,
    ) -> Self {
        let bytes = source.size();
        let staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("attention download"),
            size: bytes,
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        encoder.copy_buffer_to_buffer(source.buffer(), source.offset(), &staging, 0, bytes);
        let (sender, mapped) = shared::oneshot_channel();
        encoder.map_buffer_on_submit(&staging, wgpu::MapMode::Read, .., move |result| {
            // A receiver that is gone wants no answer.
            let _ = sender.send(result);
        });
        Self { staging, bytes, mapped }
    }

    /// Resolves once the data is on the host. Off the web, something must poll the device meanwhile.
    ///
    /// # Errors
    /// [`DownloadError`]: the map failed, the encoder was dropped, or the bytes are no whole number of `T`.
    pub async fn read<T: bytemuck::Pod>(self) -> Result<Vec<T>, DownloadError> {
        let element = size_of::<T>() as u64;
        if element == 0 || !self.bytes.is_multiple_of(element) {
            return Err(DownloadError::Element { bytes: self.bytes, element });
        }
        let mapped = self.mapped.receive().await.ok_or(DownloadError::NotSubmitted)?;
        mapped.map_err(|error| DownloadError::Map(error.to_string()))?;
        let view = (self.staging.slice(..).get_mapped_range())
            .map_err(|error| DownloadError::Map(error.to_string()))?;
        Ok(bytemuck::pod_collect_to_vec(&view))
    }
}
