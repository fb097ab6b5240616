//! Memory that direct I/O accepts, and a pool of it whose buffers are lent out as `Bytes`.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::MmapMut;

/// Direct I/O asks for memory aligned to the device's block; a page satisfies every device met so far.
const ALIGNMENT: usize = 4096;

/// From this length on memory is asked for in huge pages: the kernel has to find and pin every page of
/// what is written directly.
const HUGE_BYTES_MIN: usize = 4 << 20;

/// A page-aligned stretch of memory.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    memory: Memory,
    start: usize,
    length: usize,
}

#[derive(Debug)]
enum Memory {
    /// Inside an ordinary allocation that is a page longer.
    Ordinary(Vec<u8>),
    Mapped(MmapMut),
}

impl AlignedBuffer {
    /// Zeroed; untouched pages cost no memory.
    pub(crate) fn new(length: usize) -> Self {
        if length >= HUGE_BYTES_MIN
            && let Ok(map) = MmapMut::map_anon(length)
        {
            // Only a wish: where there are no huge pages, it is ordinary memory.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Self {
                memory: Memory::Mapped(map),
                start: 0,
                length,
            };
        }
        let memory = vec![0; length.saturating_add(ALIGNMENT)];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self {
            memory: Memory::Ordinary(memory),
            start,
            length,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let end = self.start.saturating_add(self.length);
        let memory: &[u8] = match &self.memory {
            Memory::Ordinary(memory) => memory,
            Memory::Mapped(map) => map,
        };
        memory.get(self.start..end).unwrap_or_default()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let end = self.start.saturating_add(self.length);
        let memory: &mut [u8] = match &mut self.memory {
            Memory::Ordinary(memory) => memory,
            Memory::Mapped(map) => map,
        };
        memory.get_mut(self.start..end).unwrap_or_default()
    }
}

/// Lays bytes out at an offset.
pub(crate) fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    let slot = out.get_mut(at..at.saturating_add(bytes.len()));
    assert!(
        slot.is_some(),
        "what is laid out was checked to fit the buffer"
    );
    if let Some(slot) = slot {
        slot.copy_from_slice(bytes);
    }
}

/// Zeros from an offset on.
pub(crate) fn zero(out: &mut [u8], from: usize) {
    out.get_mut(from..).unwrap_or_default().fill(0);
}

/// Read buffers by size class. What is lent out comes back when the last `Bytes` of it is dropped.
#[derive(Debug, Clone)]
pub(crate) struct BufferPool {
    free: Arc<[Mutex<Vec<AlignedBuffer>>]>,
}

/// Buffer sizes kept; anything longer is allocated for its one use.
const CLASSES: [usize; 4] = [16 << 10, 64 << 10, 256 << 10, (1 << 20) + (64 << 10)];
/// How many bytes of each class are kept for the next read.
const KEPT_BYTES_PER_CLASS: usize = 16 << 20;

impl BufferPool {
    pub(crate) fn new() -> Self {
        Self {
            free: CLASSES.iter().map(|_| Mutex::default()).collect(),
        }
    }

    pub(crate) fn lend(&self, length: usize) -> Lent {
        let class = CLASSES.iter().position(|size| *size >= length);
        let kept = class
            .and_then(|class| self.free.get(class))
            .and_then(|free| free.lock().unwrap_or_else(PoisonError::into_inner).pop());
        let size = class.and_then(|class| CLASSES.get(class)).copied();
        Lent {
            buffer: kept.unwrap_or_else(|| AlignedBuffer::new(size.unwrap_or(length))),
            pool: self.clone(),
            class,
        }
    }
}

/// A buffer out of the pool.
pub(crate) struct Lent {
    buffer: AlignedBuffer,
    pool: BufferPool,
    class: Option<usize>,
}

impl Lent {
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.bytes_mut()
    }

    /// Shared from now on; goes back to the pool when nobody holds a part of it.
    pub(crate) fn share(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.buffer.bytes()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some((class, size)) = self
            .class
            .and_then(|class| Some((class, *CLASSES.get(class)?)))
        else {
            return;
        };
        let Some(free) = self.pool.free.get(class) else {
            return;
        };
        let buffer = std::mem::replace(&mut self.buffer, AlignedBuffer::new(0));
        let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT_BYTES_PER_CLASS / size {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_on_a_page_wherever_their_owner_moves() {
        let moved: Vec<AlignedBuffer> = (1..20).map(|n| AlignedBuffer::new(n * 512)).collect();
        for (n, buffer) in moved.iter().enumerate() {
            assert_eq!(buffer.bytes().as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(buffer.bytes().len(), (n + 1) * 512);
        }
    }

    #[test]
    fn a_lent_buffer_comes_back_when_its_last_slice_is_dropped() {
        let pool = BufferPool::new();
        let shared = pool.lend(20_000).share();
        let address = shared.as_ptr();
        let slice = shared.slice(10..20);
        drop(shared);
        assert_ne!(pool.lend(20_000).share().as_ptr(), address);
        drop(slice);
        let again = [pool.lend(20_000), pool.lend(20_000)];
        assert!(again.iter().any(|lent| lent.as_ref().as_ptr() == address));
    }
}
