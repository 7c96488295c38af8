//! What wgpu has to say of some calls, as an error.

use crate::error::Error;

/// From here on whatever wgpu says is caught.
pub(crate) fn watch(device: &wgpu::Device) -> [wgpu::ErrorScopeGuard; 3] {
    [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory]
        .map(|filter| device.push_error_scope(filter))
}

/// What was caught until now.
pub(crate) fn caught(
    scopes: [wgpu::ErrorScopeGuard; 3],
) -> impl Future<Output = Result<(), Error>> + use<> {
    // Scopes are popped in reverse order; what they caught is awaited later.
    let [internal, validation, memory] = scopes;
    let memory = memory.pop();
    let validation = validation.pop();
    let internal = internal.pop();
    async move {
        match memory.await.or(validation.await).or(internal.await) {
            None => Ok(()),
            Some(wgpu::Error::OutOfMemory { source }) => {
                Err(Error::OutOfMemory(source.to_string()))
            }
            Some(
                wgpu::Error::Validation { description, .. }
                | wgpu::Error::Internal { description, .. },
            ) => Err(Error::Validation(description)),
        }
    }
}
