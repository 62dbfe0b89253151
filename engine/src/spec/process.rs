//! The program of a container, and programs that are executed in it later.

use bulkhead_container::spec::{Process, User};
use oci_spec::image::ImageConfiguration;

use super::Options;
use super::capabilities::capabilities;
use crate::error::Error;

/// Where programs are looked for if the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The container's program.
pub fn process(
    image: &ImageConfiguration,
    options: &Options,
    hostname: &str,
) -> Result<Process, Error> {
    let image = image.config().clone().unwrap_or_default();
    let mut args = match &options.entrypoint {
        Some(entrypoint) => entrypoint.clone(),
        None => image.entrypoint().clone().unwrap_or_default(),
    };
    if !options.command.is_empty() {
        args.extend(options.command.iter().cloned());
    } else if options.entrypoint.is_none() {
        args.extend(image.cmd().clone().unwrap_or_default());
    }
    if args.is_empty() {
        return Err(Error::Invalid(
            "the image has no command of its own: say after its name what to run".to_owned(),
        ));
    }
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if options.terminal {
        env.push("TERM=xterm".to_owned());
    }
    set_all(&mut env, image.env().as_deref().unwrap_or_default());
    set_all(&mut env, &options.env);
    let user = options.user.clone().or_else(|| image.user().clone());
    let user = user.filter(|user| !user.is_empty());
    let workdir = options.workdir.clone();
    let workdir = workdir.or_else(|| image.working_dir().clone());
    Ok(Process {
        terminal: options.terminal,
        args,
        env,
        cwd: absolute(workdir)?,
        capabilities: Some(capabilities(
            &options.cap_add,
            &options.cap_drop,
            is_root(user.as_deref()),
            options.isolation,
        )?),
        rlimits: options.ulimits.clone(),
        no_new_privileges: options.no_new_privileges,
        user: User {
            username: user,
            ..User::default()
        },
        ..Process::default()
    })
}

/// A program executed in the container whose own is `of`: in its environment, with its rights.
pub fn exec_process(of: &Process, options: &Options) -> Result<Process, Error> {
    let mut process = Process {
        terminal: options.terminal,
        args: options.command.clone(),
        console_size: None,
        ..of.clone()
    };
    if options.terminal && !process.env.iter().any(|var| var.starts_with("TERM=")) {
        process.env.push("TERM=xterm".to_owned());
    }
    set_all(&mut process.env, &options.env);
    if options.workdir.is_some() {
        process.cwd = absolute(options.workdir.clone())?;
    }
    if let Some(user) = &options.user {
        // Another user has its own home.
        process.env.retain(|var| !var.starts_with("HOME="));
        let rights = process.capabilities.take().unwrap_or_default();
        let own = if is_root(Some(user)) {
            rights.bounding.clone()
        } else {
            Vec::new()
        };
        process.capabilities = Some(bulkhead_container::spec::Capabilities {
            effective: own.clone(),
            permitted: own,
            ..rights
        });
        process.user = User {
            username: Some(user.clone()),
            ..User::default()
        };
    }
    Ok(process)
}

/// Sets variables, in the place of those of the same name.
fn set_all(env: &mut Vec<String>, vars: &[String]) {
    for var in vars {
        let name = var.split('=').next().unwrap_or_default();
        let same = |old: &&mut String| old.split('=').next() == Some(name);
        match env.iter_mut().find(same) {
            Some(old) => *old = var.clone(),
            None => env.push(var.clone()),
        }
    }
}

fn absolute(workdir: Option<String>) -> Result<String, Error> {
    match workdir.filter(|dir| !dir.is_empty()) {
        None => Ok("/".to_owned()),
        Some(dir) if dir.starts_with('/') => Ok(dir),
        Some(dir) => Err(Error::Invalid(format!(
            "the working directory `{dir}` is not absolute: begin it with /"
        ))),
    }
}

fn is_root(user: Option<&str>) -> bool {
    let name = user.unwrap_or_default().split(':').next();
    matches!(name, None | Some("" | "0" | "root"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};

    fn image() -> ImageConfiguration {
        let own = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let config = ConfigBuilder::default()
            .entrypoint(own(&["entry"]))
            .cmd(own(&["cmd", "arg"]))
            .env(own(&["PATH=/bin", "A=1"]))
            .user("nobody:1".to_owned())
            .working_dir("/srv".to_owned())
            .build()
            .expect("config");
        ImageConfigurationBuilder::default()
            .config(config)
            .os("linux")
            .architecture("amd64")
            .rootfs(oci_spec::image::RootFs::default())
            .build()
            .expect("image")
    }

    fn args(entrypoint: Option<&[&str]>, command: &[&str]) -> Vec<String> {
        let own = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let options = Options {
            entrypoint: entrypoint.map(own),
            command: own(command),
            ..Options::default()
        };
        process(&image(), &options, "h").expect("process").args
    }

    #[test]
    fn program_is_put_together_as_docker_does() {
        assert_eq!(args(None, &[]), ["entry", "cmd", "arg"]);
        assert_eq!(args(None, &["x"]), ["entry", "x"]);
        assert_eq!(args(Some(&["e"]), &[]), ["e"]);
        assert_eq!(args(Some(&["e"]), &["x"]), ["e", "x"]);
        assert_eq!(args(Some(&[]), &["x"]), ["x"]);
        let none = process(&ImageConfiguration::default(), &Options::default(), "h");
        assert!(none.is_err());
    }

    #[test]
    fn environment_has_each_variable_once_and_the_users_word_counts() {
        let options = Options {
            env: vec!["A=2".into(), "B=x=y".into()],
            ..Options::default()
        };
        let process = process(&image(), &options, "h").expect("process");
        assert_eq!(process.env, ["PATH=/bin", "HOSTNAME=h", "A=2", "B=x=y"]);
        assert_eq!(process.cwd, "/srv");
        assert_eq!(process.user.username.as_deref(), Some("nobody:1"));
        assert!(process.capabilities.expect("set").effective.is_empty());
    }

    #[test]
    fn exec_has_the_containers_environment_and_another_user_not_its_rights() {
        let of = process(&image(), &Options::default(), "h").expect("process");
        let options = Options {
            command: vec!["id".into()],
            user: Some("root".into()),
            workdir: Some("/tmp".into()),
            ..Options::default()
        };
        let exec = exec_process(&of, &options).expect("exec");
        assert_eq!(
            (exec.args, exec.cwd),
            (vec!["id".to_owned()], "/tmp".into())
        );
        assert_eq!(exec.env, of.env);
        assert_eq!(exec.capabilities.expect("set").effective.len(), 14);
        let relative = Options {
            workdir: Some("tmp".into()),
            ..options
        };
        assert!(exec_process(&of, &relative).is_err());
    }
}
