//! The agent as a Windows service: how it is installed, started, stopped, removed, and run by the
//! service manager.
//!
//! The service runs as LocalSystem; its folders belong to administrators and the system alone.

use super::access::{self, program_data};
use super::stop;
use crate::platform::ServiceOrder;
use anyhow::{Context, Result, bail};
use jscommon::lock::lock;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use windows_service::service::{
    Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceControl, ServiceControlAccept,
    ServiceErrorControl, ServiceExitCode, ServiceFailureActions, ServiceFailureResetPeriod, ServiceInfo,
    ServiceStartType, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};
use windows_service::{define_windows_service, service_dispatcher};

const NAME: &str = "jsagent";

/// A stop ends jobs, each with its own time, and sends what there is.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// The controls that the manager may send. PRESHUTDOWN comes before the system's own services end and
/// leaves more time than SHUTDOWN, which it excludes.
const ACCEPTED: ServiceControlAccept = ServiceControlAccept::STOP.union(ServiceControlAccept::PRESHUTDOWN);
const _: () = assert!(!ACCEPTED.contains(ServiceControlAccept::SHUTDOWN), "a service accepts one of the two");

/// "No such service", as the system numbers it.
const MISSING: i32 = 1060;

/// Where the configuration of the service lies unless it is said otherwise.
pub(crate) fn service_config() -> PathBuf {
    program_data().join("jsagent").join("agent.toml")
}

/// Does what was asked; the answer is what to tell the user.
pub(crate) fn service(order: ServiceOrder) -> Result<String> {
    match order {
        ServiceOrder::Install { config, data_dir } => install(&config, &data_dir),
        ServiceOrder::Start => start(),
        ServiceOrder::Stop => {
            end(&open(ServiceAccess::STOP | ServiceAccess::QUERY_STATUS)?)?;
            Ok(format!("the service {NAME} is stopped\n"))
        }
        ServiceOrder::Uninstall => uninstall(),
    }
}

/// Installs this program as a service that runs with a configuration, or brings the installed one up to date.
fn install(config: &Path, data_dir: &Path) -> Result<String> {
    let program = std::env::current_exe().context("the agent's own program cannot be found")?;
    let config = std::path::absolute(config).context("the configuration has no path")?;
    let private = |path: &Path| {
        access::make_service_dir(path).with_context(|| format!("cannot keep {} for administrators", path.display()))
    };
    private(data_dir)?;
    // The credentials lie beside the configuration. A folder elsewhere may be somebody's own.
    let shared = access::without_case(&program_data());
    let is_ours = |folder: &&Path| folder.parent().is_some_and(|above| access::without_case(above) == shared);
    if let Some(folder) = config.parent().filter(is_ours) {
        private(folder)?;
    }
    let info = ServiceInfo {
        name: NAME.into(),
        display_name: "js agent".into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: program,
        launch_arguments: ["service", "run", "-c"].iter().map(OsString::from).chain([config.into()]).collect(),
        dependencies: Vec::new(),
        account_name: None,
        account_password: None,
    };
    let manager = manager(ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE)?;
    let rights = ServiceAccess::CHANGE_CONFIG | ServiceAccess::START;
    let service = match manager.open_service(NAME, rights) {
        Ok(service) => service.change_config(&info).map(|()| service).context("the service cannot be changed")?,
        Err(fault) if code(&fault) == Some(MISSING) => {
            manager.create_service(&info, rights).map_err(plain).context("the service cannot be installed")?
        }
        Err(fault) => return Err(plain(fault)).context("the service cannot be opened"),
    };
    let action = ServiceAction { action_type: ServiceActionType::Restart, delay: Duration::from_secs(1) };
    let restart = service
        .set_description("Runs this node's commands, watches its processes, and sends their results")
        .and_then(|()| {
            service.update_failure_actions(ServiceFailureActions {
                reset_period: ServiceFailureResetPeriod::After(Duration::from_secs(60)),
                reboot_msg: None,
                command: None,
                actions: Some(vec![action; 3]),
            })
        })
        // `restart` is an end that the manager is to undo.
        .and_then(|()| service.set_failure_actions_on_non_crash_failures(true));
    let mut said = format!("the service {NAME} is installed; start it with: jsagent service start\n");
    if let Err(fault) = restart {
        let fault = plain(fault);
        said.push_str(&format!("it will not be started again when it ends, for the system refuses: {fault:#}\n"));
    }
    // Without this the system waits 10 seconds.
    if let Err(fault) = service.set_preshutdown_timeout(STOP_LIMIT) {
        let fault = plain(fault);
        said.push_str(&format!(
            "a shutdown may end it before its jobs have ended, for the system refuses: {fault:#}\n"
        ));
    }
    Ok(said)
}

/// Starts the installed service, and returns once it runs.
fn start() -> Result<String> {
    let service = open(ServiceAccess::START | ServiceAccess::QUERY_STATUS)?;
    if state(&service)? != ServiceState::Running {
        service.start::<&OsStr>(&[]).map_err(plain).context("the service cannot be started")?;
        wait(&service, ServiceState::Running, Duration::from_secs(30))
            .context("the service does not run: see jsagent.log beside its configuration")?;
    }
    Ok(format!("the service {NAME} runs\n"))
}

/// Stops the service and removes it; its folders stay.
fn uninstall() -> Result<String> {
    let service = open(ServiceAccess::STOP | ServiceAccess::QUERY_STATUS | ServiceAccess::DELETE)?;
    end(&service)?;
    service.delete().map_err(plain).context("the service cannot be removed")?;
    Ok(format!("the service {NAME} is removed; its folder {} is kept\n", program_data().join("jsagent").display()))
}

/// Stops the service, and returns once it has ended.
fn end(service: &Service) -> Result<()> {
    if state(service)? != ServiceState::Stopped {
        service.stop().map_err(plain).context("the service cannot be stopped")?;
        wait(service, ServiceState::Stopped, STOP_LIMIT)?;
    }
    Ok(())
}

fn open(rights: ServiceAccess) -> Result<Service> {
    match manager(ServiceManagerAccess::CONNECT)?.open_service(NAME, rights) {
        Ok(service) => Ok(service),
        Err(fault) if code(&fault) == Some(MISSING) => {
            bail!("there is no service {NAME}: jsagent service install -c FILE")
        }
        Err(fault) => Err(plain(fault)).context("the service cannot be opened (only administrators may)"),
    }
}

fn manager(rights: ServiceManagerAccess) -> Result<ServiceManager> {
    ServiceManager::local_computer(None::<&str>, rights)
        .map_err(plain)
        .context("the service manager refuses: only administrators may do this")
}

fn state(service: &Service) -> Result<ServiceState> {
    Ok(service.query_status().map_err(plain).context("the service does not say how it is")?.current_state)
}

fn wait(service: &Service, wanted: ServiceState, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        let now = state(service)?;
        if now == wanted {
            return Ok(());
        }
        // A start that fails ends where it began.
        if Instant::now() > end || (now == ServiceState::Stopped && wanted == ServiceState::Running) {
            bail!("it is {now:?}, not {wanted:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn code(fault: &windows_service::Error) -> Option<i32> {
    match fault {
        windows_service::Error::Winapi(fault) => fault.raw_os_error(),
        _ => None,
    }
}

/// Returns the system's own error; the wrapper's message only says that there is one.
fn plain(fault: windows_service::Error) -> anyhow::Error {
    match fault {
        windows_service::Error::Winapi(fault) => fault.into(),
        other => other.into(),
    }
}

type Body = Box<dyn FnOnce(&dyn Fn()) -> bool + Send>;

/// The body of the service. The service manager's thread calls a function that takes no state.
static BODY: Mutex<Option<Body>> = Mutex::new(None);

define_windows_service!(enter, serve);

/// Runs `body` as the service that the manager has started this process for. `body` is given what to
/// call once it serves, and answers whether it ended well.
pub(crate) fn run_service(body: impl FnOnce(&dyn Fn()) -> bool + Send + 'static) -> Result<()> {
    *lock(&BODY) = Some(Box::new(body));
    service_dispatcher::start(NAME, enter)
        .map_err(plain)
        .context("only the service manager runs this: jsagent service start")
}

fn serve(_: Vec<OsString>) {
    let known: Arc<OnceLock<ServiceStatusHandle>> = Arc::default();
    let handle = known.clone();
    let handler = move |control| match control {
        ServiceControl::Stop | ServiceControl::Shutdown | ServiceControl::Preshutdown => {
            if let Some(status) = handle.get() {
                tell(*status, ServiceState::StopPending, 0);
            }
            stop::ask("the service manager");
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        _ => ServiceControlHandlerResult::NotImplemented,
    };
    let Ok(status) = service_control_handler::register(NAME, handler) else { return };
    let _ = known.set(status);
    let body = lock(&BODY).take();
    tell(status, ServiceState::StartPending, 0);
    let good = body.is_some_and(|body| body(&|| tell(status, ServiceState::Running, 0)));
    // Ended by itself, be it a fault or a `restart`: the manager starts it again after a failure alone.
    tell(status, ServiceState::Stopped, u32::from(!(good && stop::was_asked())));
}

fn tell(status: ServiceStatusHandle, state: ServiceState, code: u32) {
    let running = state == ServiceState::Running;
    let told = status.set_service_status(ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted: match running {
            true => ACCEPTED,
            false => ServiceControlAccept::empty(),
        },
        exit_code: if code == 0 { ServiceExitCode::NO_ERROR } else { ServiceExitCode::ServiceSpecific(code) },
        checkpoint: 0,
        wait_hint: if running { Duration::ZERO } else { STOP_LIMIT },
        process_id: None,
    });
    if let Err(fault) = told {
        log::warn!("the service manager does not hear that this is {state:?}: {fault}");
    }
}
