//! Names of the built-in images, in the spellings that a pod may use.

/// A built-in image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// `seaway/echo`: answers over HTTP, TCP and UDP and says which pod it is.
    Echo,
    /// `seaway/client`: executes probes when asked over HTTP, and steady load.
    Client,
    /// `seaway/pause`: waits.
    Pause,
}

/// Registries that a short name stands for.
const DEFAULT_REGISTRIES: [&str; 3] = ["docker.io/", "index.docker.io/", "localhost/"];

impl Image {
    /// The built-in image that `name` names: `seaway/echo`, with or without a tag, a digest and the default registry.
    pub fn parse(name: &str) -> Option<Self> {
        let name = DEFAULT_REGISTRIES.iter().find_map(|registry| name.strip_prefix(registry)).unwrap_or(name);
        let name = name.split('@').next().unwrap_or(name);
        let image = name.strip_prefix("seaway/")?;
        match image.split_once(':').map_or(image, |(image, _tag)| image) {
            "echo" => Some(Self::Echo),
            "client" => Some(Self::Client),
            "pause" => Some(Self::Pause),
            _ => None,
        }
    }
}

/// Whether `name` names a built-in image.
pub fn is_builtin(name: &str) -> bool {
    Image::parse(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for name in [
            "seaway/echo",
            "seaway/echo:v1",
            "docker.io/seaway/echo",
            "docker.io/seaway/echo:latest",
            "localhost/seaway/echo@sha256:00",
            "seaway/echo:v1@sha256:00",
        ] {
            assert_eq!(Image::parse(name), Some(Image::Echo), "{name}");
        }
        assert_eq!(Image::parse("seaway/client"), Some(Image::Client));
        assert_eq!(Image::parse("seaway/pause:3"), Some(Image::Pause));
        for name in [
            "",
            "echo",
            "seaway/",
            "seaway/echoes",
            "other/echo",
            "registry.example/seaway/echo",
            "seaway/echo/x",
        ] {
            assert!(!is_builtin(name), "{name}");
        }
    }
}
